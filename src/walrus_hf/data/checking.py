"""What is missing or damaged in a source: its splits and files, what they must share, and the numbers in them.

Nothing here stops at the first damaged file, and nothing is believed from the cache of manifests.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import os
from collections.abc import Iterator, Mapping

import numpy as np

from ..fields import BoundaryCondition
from .manifest import FileManifest, Manifest
from .remote import BufferedRangeFile, ChangedFileError, join_inside, local_path, open_range_file
from .scenarios import Scenario
from .source_files import index_files, list_folder, locate_source
from .stretches import Part, Stretch, read_stretches
from .well import OBSTACLE_MASK, cell_problems
from .well_opening import one_line, open_well_file

RANKS = ("", " (vector)", " (tensor)")


@dataclasses.dataclass(frozen=True)
class Finding:
    """One problem of a source.

    Attributes:
        file: the file or folder, as it can be opened.
        problem: in one line: expected, found, remedy.
        severity: `"error"`, missing or damaged; `"unreachable"`, the store did not answer, so that nothing is known of
            the file; `"note"`, worth knowing, and data can be used as they are.
    """

    file: str
    problem: str
    severity: str = "error"


def check_source(
    source: str | os.PathLike,
    split: str | None = None,
    base_path: str | os.PathLike | None = None,
    read: bool = False,
    progress: bool = False,
    storage_options: dict | None = None,
) -> tuple[list[Finding], list[Manifest]]:
    """All that is missing or damaged, and manifests of the files that can be used.

    A store that stops answering ends the check with a finding of its own, after those before it.

    Args:
        source: name of a scenario, file, folder, manifest or URL.
        split: `"train"`, `"valid"` or `"test"`; None checks all three, and for a scenario counts its trajectories.
        base_path: folder or URL that holds the scenarios as `<name>/data/<split>`, instead of the Hub.
        read: read every frame, and look for NaN and infinite numbers and for what cannot be read; also for cells that
            differ in size.
        progress: show bars on a terminal.

    Raises:
        ValueError: no such scenario, or a source that cannot be checked as it is.
        OSError: the store cannot be reached at all.
    """
    place = locate_source(source, split, base_path, storage_options)
    findings: list[Finding] = []
    manifests: list[Manifest] = []
    for folder in place.folders:
        try:
            files = list_folder(folder, storage_options)
        except FileNotFoundError as error:
            findings.append(finding_of(folder.url, error))
            continue
        entries: list[FileManifest] = []
        for path, entry in zip(files.paths, index_files(files, storage_options, cache=False, progress=progress)):
            if isinstance(entry, FileManifest):
                entries.append(entry)
                continue
            findings.append(finding_of(f"{files.root}/{path}", entry))
            if findings[-1].severity == "unreachable":
                return findings, manifests
        if entries:
            manifests.append(Manifest(files.root, tuple(entries)))
    whole = split is None and not findings
    findings += check_agreement(manifests, place.scenario, place.home or os.fspath(source))
    if place.scenario is not None and whole:
        findings += _check_count(manifests, place.scenario, place.home or place.folders[0].url)
    if place.home is not None and manifests:
        findings += _check_stats_file(place.home, storage_options)
    for manifest in manifests if read else ():
        findings += _check_cells(manifest, storage_options)
        findings += check_numbers(manifest, progress, storage_options)
        if findings and findings[-1].severity == "unreachable":
            break
    return findings, manifests


def finding_of(url: str, error: ValueError | OSError) -> Finding:
    """An error as a finding: damaged where the store answered, unreachable where it did not."""
    answered = isinstance(error, ValueError | FileNotFoundError | PermissionError | ChangedFileError)
    text = (error.strerror if isinstance(error, OSError) else None) or one_line(error)
    severity = "error" if answered or local_path(url) is not None else "unreachable"
    return Finding(url, text.removeprefix(f"{url}: "), severity)


def check_agreement(manifests: list[Manifest], scenario: Scenario | None, where: str) -> list[Finding]:
    """Files must agree with most of the others, and these with the scenario where there is one.

    Boundary kinds other than the scenario's are a note: what The Well's metadata leave open was concluded for the
    table, and readers take the files' word. Frames may differ from file to file unless the scenario says otherwise.
    """
    described = {manifest.url(n): _shared(entry) for manifest in manifests for n, entry in enumerate(manifest.files)}
    if not described:
        return []
    facts = {} if scenario is None else _facts(scenario)
    findings = []
    for what in next(iter(described.values())):
        if what == "frames" and what not in facts:
            continue
        found = {url: shared[what] for url, shared in described.items()}
        common = collections.Counter(found.values()).most_common(1)[0][0]
        example = next(url for url in found if found[url] == common).rpartition("/")[2]
        findings += [
            Finding(url, f"expected the {what} of {example}, {common}, found {text}")
            for url, text in found.items()
            if text != common
        ]
        if common != facts.get(what, common):
            note = what == "boundary conditions"
            findings.append(
                Finding(
                    where,
                    f"expected the {what} of the scenario, {facts[what]}, found {common} in most files"
                    + ("; readers take the files' word" if note else ""),
                    "note" if note else "error",
                )
            )
    return findings + _check_each(manifests, scenario)


def _check_each(manifests: list[Manifest], scenario: Scenario | None) -> list[Finding]:
    """What each file is asked for by itself."""
    findings = []
    low, high = scenario.frames if scenario is not None and not isinstance(scenario.frames, int) else (1, math.inf)
    for manifest in manifests:
        for n, entry in enumerate(manifest.files):
            kinds = len(set(entry.boundaries))
            problems = {
                "expected a field that changes in time, found none": not any(f.time_varying for f in entry.fields),
                f"expected one set of boundary conditions, found {kinds}; split the file": kinds > 1,
                f"expected {low} to {high} frames as the scenario has, found {entry.frames}": not (
                    low <= entry.frames <= high
                ),
            }
            findings += [Finding(manifest.url(n), problem) for problem, found in problems.items() if found]
    return findings


def _check_count(manifests: list[Manifest], scenario: Scenario, where: str) -> list[Finding]:
    found = sum(entry.trajectories for manifest in manifests for entry in manifest.files)
    if found == scenario.trajectories:
        return []
    files = sum(len(manifest.files) for manifest in manifests)
    text = f"expected {scenario.trajectories} trajectories in all, as the paper counts, found {found} in {files} files"
    if found > scenario.trajectories:
        return [Finding(where, text, "note")]
    return [Finding(where, f"{text}; are there more files at the source?")]


def _check_cells(manifest: Manifest, storage_options: dict | None) -> list[Finding]:
    """Notes on cells that differ in size: published data have such, and models learn from them as they are."""
    findings = []
    for n, entry in enumerate(manifest.files):
        if entry.format == "flowbench":
            continue
        url = manifest.url(n)
        try:
            with (
                BufferedRangeFile(open_range_file(url, storage_options=storage_options)) as opened,
                open_well_file(url, opened) as file,
            ):
                findings += [Finding(url, problem, "note") for problem in cell_problems(file)]
        except (ValueError, OSError):
            pass  # reading the numbers will tell
    return findings


def _check_stats_file(home: str, storage_options: dict | None) -> list[Finding]:
    url = join_inside(home, "stats.yaml")
    try:
        open_range_file(url, storage_options=storage_options).identity()
    except FileNotFoundError:
        return [Finding(url, "expected the statistics, found none; write them with `walrus-hf data stats`", "note")]
    except OSError as error:
        return [finding_of(url, error)]
    return []


def _shared(entry: FileManifest) -> dict[str, str]:
    """What the files of one source share, as words to compare and to print."""
    fields: dict[bool, dict[str, int]] = {True: {}, False: {}}
    for field in entry.fields:
        if field.name != OBSTACLE_MASK:
            fields[field.time_varying][field.name] = field.rank
    return {
        "dataset name": entry.dataset_name,
        "format": entry.format,
        "grid": grid_text(entry.axes, entry.grid),
        "grid type": entry.grid_type,
        "boundary conditions": sides_text(entry.axes, entry.boundaries[0]),
        "fields": fields_text(fields[True], fields[False]),
        "frames": str(entry.frames),
    }


def _facts(scenario: Scenario) -> dict[str, str]:
    pairs = [(kind, kind) if isinstance(kind, str) else kind for kind in scenario.boundary_conditions.values()]
    sides = tuple((int(BoundaryCondition.parse(low)), int(BoundaryCondition.parse(high))) for low, high in pairs)
    facts = {
        "grid": grid_text(scenario.axes, scenario.grid),
        "boundary conditions": sides_text(scenario.axes, sides),
        "fields": fields_text(scenario.fields, scenario.constant_fields),
    }
    return {**facts, "frames": str(scenario.frames)} if isinstance(scenario.frames, int) else facts


def grid_text(axes: tuple[str, ...], grid: tuple[int, ...]) -> str:
    """`x=512, y=128`."""
    return ", ".join(f"{axis}={n}" for axis, n in zip(axes, grid))


def sides_text(axes: tuple[str, ...], sides: tuple[tuple[int, int], ...]) -> str:
    """`x periodic, y wall/open`, the low side first."""
    words = []
    for axis, (low, high) in zip(axes, sides):
        names = [BoundaryCondition(kind).name.lower() for kind in (low, high)]
        words.append(f"{axis} {names[0] if low == high else '/'.join(names)}")
    return ", ".join(words)


def fields_text(fields: Mapping[str, int], constant_fields: Mapping[str, int]) -> str:
    """`pressure, velocity (vector), constant mask`, from names and ranks."""
    varying = [f"{name}{RANKS[fields[name]]}" for name in sorted(fields)]
    return ", ".join(varying + [f"constant {name}{RANKS[constant_fields[name]]}" for name in sorted(constant_fields)])


def check_numbers(manifest: Manifest, progress: bool = False, storage_options: dict | None = None) -> list[Finding]:
    """Every frame read: NaN and infinite numbers of each field of a file, and stretches that cannot be read.

    Memory is bounded as in `read_stretches`.
    """
    unread: dict[int, list[str]] = {}
    first_bad: dict[tuple[int, str], str] = {}
    arrays: collections.Counter[tuple[int, str]] = collections.Counter()
    cells: collections.Counter[tuple[int, str]] = collections.Counter()
    lost: list[Finding] = []
    for stretch, future in read_stretches(manifest, progress=progress, storage_options=storage_options):
        try:
            part = future.result()
        except (ValueError, OSError) as error:
            found = finding_of(manifest.url(stretch.file), error)
            if found.severity == "unreachable":
                lost.append(dataclasses.replace(found, problem=f"{stretch}: {found.problem}"))
                break
            unread.setdefault(stretch.file, []).append(f"{stretch}: {found.problem}")
            continue
        for name, place, count in _bad_arrays(stretch, part):
            first_bad.setdefault((stretch.file, name), place)
            arrays[stretch.file, name] += 1
            cells[stretch.file, name] += count
    findings = [
        Finding(manifest.url(file), texts[0] + (f" (and {len(texts) - 1} more stretches)" if texts[1:] else ""))
        for file, texts in unread.items()
    ]
    for (file, name), place in first_bad.items():
        more = arrays[file, name] - 1
        text = f"field {name!r}: expected finite numbers, found {cells[file, name]} NaN or infinite in {place}"
        findings.append(Finding(manifest.url(file), text + (f" and {more} more" if more else "")))
    return findings + lost


def _bad_arrays(stretch: Stretch, part: Part) -> Iterator[tuple[str, str, int]]:
    """Field, place and count of the numbers that are not finite, for each frame and constant field with such.

    Inside obstacles they may stand, where nobody reads them.
    """
    where, free = f"trajectory {stretch.trajectory}", ... if part.obstacle is None else ~part.obstacle
    found = [(name, where, values[free]) for name, values in part.constants.items()]
    for name, values in part.fields.items():
        found += [(name, f"{where}, frame {stretch.first + t}", frame[free]) for t, frame in enumerate(values)]
    for name, place, values in found:
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            yield name, place, values.size - int(np.count_nonzero(np.isfinite(values)))
