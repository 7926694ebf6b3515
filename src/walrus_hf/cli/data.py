"""`walrus-hf data list | index | stats | check | convert`: what there is to train on, and whether it is whole."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .options import Overwrite, check_output, print_table

if TYPE_CHECKING:
    from ..data.manifest import Manifest
    from ..data.scenarios import Scenario
    from ..data.statistics import RunningStatistics

app = typer.Typer(
    name="data",
    help="Data sets to train on: list the scenarios, index, check and convert files, take statistics.",
    no_args_is_help=True,
)

SourceName = Annotated[str, typer.Argument(metavar="SOURCE", help="A scenario's name, file, folder, manifest or URL.")]
BasePath = Annotated[
    str | None,
    typer.Option(help="Folder or URL that holds the scenarios as NAME/data/SPLIT, instead of the Hub."),
]
Split = Annotated[Literal["train", "valid", "test"], typer.Option(help="Which part of a data set.")]
# What all shards have in common.
_SHARD_OF = ("scenario", "split", "trajectories", "shards")
RANKS = ("scalar", "vector", "tensor")


@app.command("list")
def list_scenarios(
    stage: Annotated[
        Literal["pretraining", "downstream"] | None, typer.Option(help="Only the scenarios of this stage.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for all that is known of them.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """List the 27 scenarios of the paper: what they hold, their licence, and whether they can be read as they are."""
    from ..data.scenarios import SCENARIOS
    from ..safe_files import write_json

    check_output(json_file, overwrite, (".json",))
    found = [scenario for scenario in SCENARIOS.values() if stage in (None, scenario.stage)]
    _print_scenarios(found)
    if json_file is not None:
        entries = [
            {
                **dataclasses.asdict(scenario),
                "batch_factor": scenario.batch_factor,
                "context_factor": scenario.context_factor,
                "readable": scenario.readable,
                "converter": scenario.converter,
            }
            for scenario in found
        ]
        write_json(json_file, {"scenarios": entries})
        typer.echo(f"wrote {json_file}")


def _print_scenarios(scenarios: Iterable[Scenario]) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("scenario\n  title in the paper", no_wrap=True)
    for head, widest in (("grid\nframes", None), ("fields", None), ("boundaries", 13), ("licence\nreadable", None)):
        table.add_column(head, max_width=widest, overflow="fold")
    for scenario in scenarios:
        frames = scenario.frames
        table.add_row(
            f"[bold]{scenario.name}[/]\n  {scenario.title}",
            f"{'x'.join(map(str, scenario.grid))}\n{frames if isinstance(frames, int) else '-'.join(map(str, frames))}",
            escape(_fields(scenario)),
            _boundaries(scenario),
            f"{scenario.licence}\n{'as it is' if scenario.readable else f'by {scenario.format}'}",
        )
    console = Console()
    console.print(table, width=None if console.is_terminal else max(console.width, 100), highlight=False)
    typer.echo(
        "[2], [3], [3,3]: components of a vector or tensor\n"
        "by NAME: after `walrus-hf data convert --format NAME FILE --output DIR`, with DIR as the source"
    )


def _fields(scenario: Scenario) -> str:
    tail = ("", f"[{len(scenario.axes)}]", f"[{len(scenario.axes)},{len(scenario.axes)}]")
    text = ", ".join(f"{name}{tail[rank]}" for name, rank in scenario.fields.items())
    constant = ", ".join(f"{name}{tail[rank]}" for name, rank in scenario.constant_fields.items())
    return f"{text}; constant {constant}" if constant else text


def _boundaries(scenario: Scenario) -> str:
    """`periodic`, or a line for each kind with its axes."""
    axes_of: dict[str, list[str]] = {}
    for axis, kind in scenario.boundary_conditions.items():
        axes_of.setdefault(kind if isinstance(kind, str) else "/".join(kind), []).append(axis)
    if len(axes_of) == 1:
        return next(iter(axes_of))
    return "\n".join(f"{', '.join(axes)} {kind}" for kind, axes in axes_of.items())


@app.command()
def index(
    source: SourceName,
    split: Split = "train",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Manifest (.json), a source itself: opens without indexing.")
    ] = None,
    base_path: BasePath = None,
    overwrite: Overwrite = False,
) -> None:
    """Find out what lies where in the files of a source, so that frames can be read by byte ranges."""
    from ..data.source_files import open_source

    check_output(output, overwrite, (".json",))
    manifest, scenario = open_source(source, split, base_path, progress=True)
    _print_manifest(manifest, scenario)
    if output is not None:
        if "://" not in manifest.root:  # a manifest is read from other folders too
            manifest = dataclasses.replace(manifest, root=str(Path(manifest.root).absolute()))
        manifest.save(output, overwrite)
        typer.echo(f"wrote {output}")


def _print_manifest(manifest: Manifest, scenario: Scenario | None) -> None:
    from ..data.checking import grid_text, sides_text

    files = manifest.files
    trajectories = sum(entry.trajectories for entry in files)
    frames = sum(entry.trajectories * entry.frames for entry in files)
    lengths = sorted({entry.frames for entry in files})
    each = f"{lengths[0]}" if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]}"
    lines = {
        "source": manifest.root,
        "licence": None if scenario is None else scenario.licence,
        "files": f"{len(files):,}, {_size(sum(entry.size for entry in files))}",
        "trajectories": f"{trajectories:,}",
        "frames": f"{frames:,}, {each} a trajectory",
        "grid": _distinct(f"{grid_text(entry.axes, entry.grid)} ({entry.grid_type})" for entry in files),
        "boundaries": _distinct(sides_text(entry.axes, sides) for entry in files for sides in entry.boundaries),
    }
    for name, text in lines.items():
        if text is not None:
            typer.echo(f"{name:14}{text}")
    _print_fields(manifest)


def _print_fields(manifest: Manifest) -> None:
    """One row a field; what differs from file to file is given as often as it differs."""
    rows: dict[str, list[tuple[str, ...]]] = {}
    for entry in manifest.files:
        for field in entry.fields:
            varies = ["trajectory"] * field.sample_varying + ["frame"] * field.time_varying
            text = (
                RANKS[field.rank],
                " and ".join(varies) or "nothing",
                field.dtype,
                _size(field.frame_bytes),
                "library" if field.kind == "library" else f"ranges, {field.kind}",
            )
            rows.setdefault(field.name, []).append(text)
    cells = [[name, *(_distinct(column) for column in zip(*texts))] for name, texts in rows.items()]
    print_table("fields", ["field", "kind", "varies with", "numbers", "a frame", "read by"], cells)


def _distinct(texts: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(texts))


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}" if unit != "bytes" else f"{count} bytes"
        count /= 1000
    return f"{count:.3g} TB"


@app.command()
def stats(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE", help="A source as of index; with --merge, the files of all shards.")
    ],
    split: Split = "train",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Default: stats.yaml, for a shard stats-I-of-N.json.")
    ] = None,
    base_path: BasePath = None,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Take the trajectories I, I + N, I + 2N, ... only; I from 0 to N - 1."),
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Combine the files that --shard wrote.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Take the statistics of all fields and of their changes in one pass, written as The Well's stats.yaml.

    Of a scenario's fields they are taken as the model reads them: logarithms, and zeros where it reads zeros.
    """
    from ..data.statistics import write_stats

    part = None if shard is None else _parse_shard(shard)
    if merge and (part is not None or base_path is not None):
        raise ValueError("--merge: expected files of shards alone, found --shard or --base-path beside it")
    if not merge and len(sources) != 1:
        raise ValueError(f"expected one source, found {len(sources)}; files of shards are combined with --merge")
    target = output or Path("stats.yaml" if part is None else f"stats-{part[0]}-of-{part[1]}.json")
    check_output(target, overwrite, (".json",) if part is not None else (".yaml", ".yml"))
    statistics = _merged(sources) if merge else _collected(sources[0], split, base_path, part, target)
    if statistics is None:
        return
    summary = statistics.as_stats()
    rows = [row for name in sorted(summary["mean"]) for row in _rows(name, summary)]
    print_table("statistics", ["field", "mean", "std", "rms", "rms of changes"], rows)
    typer.echo(f"wrote {write_stats(summary, target, overwrite)}")


def _collected(
    source: str, split: str, base_path: str | None, shard: tuple[int, int] | None, target: Path
) -> RunningStatistics | None:
    """The statistics of a source; those of a shard are written to `target` for later, and None."""
    from ..data.source_files import open_source
    from ..data.stretches import collect_statistics
    from ..safe_files import write_json

    manifest, scenario = open_source(source, split, base_path, progress=True)
    statistics = collect_statistics(manifest, scenario, shard or (0, 1), progress=True)
    if shard is None:
        return statistics
    trajectories = sum(entry.trajectories for entry in manifest.files)
    described = {
        "source": source, "scenario": scenario and scenario.name, "split": split, "trajectories": trajectories,
        "shard": shard[0], "shards": shard[1],
    }  # fmt: skip
    write_json(target, {**described, **statistics.to_dict()})
    typer.echo(f"wrote {target}; combine all {shard[1]} with: walrus-hf data stats --merge FILE FILE ...")
    return None


def _merged(paths: Sequence[str]) -> RunningStatistics:
    """The sum of all shards of one source, each once."""
    from ..data.statistics import RunningStatistics

    parts = [_read_shard(path) for path in paths]
    count = parts[0]["shards"]
    for path, part in zip(paths, parts):
        for name in _SHARD_OF:
            if part[name] != parts[0][name]:
                raise ValueError(f"{path}: expected {name} {parts[0][name]!r} as in {paths[0]}, found {part[name]!r}")
    numbers = sorted(part["shard"] for part in parts)
    if numbers != list(range(count)):
        raise ValueError(
            f"--merge: expected each of the {count} shards once, 0 to {count - 1}, found {', '.join(map(str, numbers))}"
        )
    total = RunningStatistics(parts[0]["statistics"].spatial_dims)
    for part in parts:
        total.merge(part["statistics"])
    return total


def _read_shard(path: str) -> dict[str, Any]:
    from ..data.statistics import RunningStatistics

    try:
        part = json.loads(Path(path).read_text(encoding="utf-8"))
        described = {name: part[name] for name in (*_SHARD_OF, "shard")}
        if not all(isinstance(part[name], int) for name in ("shard", "shards")):
            raise ValueError(f"shard {part['shard']!r} of {part['shards']!r}")
        return {**described, "statistics": RunningStatistics.from_dict(part)}
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: expected a file that --shard wrote, found none") from None
    except (KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: expected a file that --shard wrote, found another kind ({reason})") from None


def _parse_shard(text: str) -> tuple[int, int]:
    try:
        number, count = map(int, text.split("/"))
    except ValueError:
        number, count = 0, 0
    if not 0 <= number < count:
        raise ValueError(f"--shard: expected I/N such as 0/4, I from 0 to N - 1, found {text!r}")
    return number, count


def _rows(name: str, summary: dict[str, dict[str, Any]]) -> list[list[str]]:
    """A row for each component of a field; constant fields do not change."""
    import numpy as np

    columns = [np.asarray(summary[kind][name]) for kind in ("mean", "std", "rms")]
    changes = summary["rms_delta"].get(name)
    columns.append(np.full(columns[0].shape, np.nan) if changes is None else np.asarray(changes))
    rows = []
    for place in np.ndindex(columns[0].shape):
        component = f"[{', '.join(map(str, place))}]" if place else ""
        rows.append([name + component, *("" if np.isnan(c[place]) else f"{c[place]:.4g}" for c in columns)])
    return rows


@app.command()
def check(
    source: SourceName,
    split: Annotated[
        Literal["train", "valid", "test"] | None, typer.Option(help="Only this part of a data set; default: all.")
    ] = None,
    read: Annotated[
        bool,
        typer.Option(
            "--read", help="Read every frame: NaN, infinite and unreadable numbers, unequal or falling cells."
        ),
    ] = False,
    base_path: BasePath = None,
) -> None:
    """Report what is missing or damaged, on disk or on the Hub; the files are opened anew, whatever was indexed.

    Ends with 0 if all is whole (notes aside), 2 if not, and 1 if the store cannot be reached.
    """
    from ..data.checking import check_source

    findings, manifests = check_source(source, split, base_path, read, progress=True)
    for finding in findings:
        typer.echo(f"{finding.severity}: {finding.file}: {finding.problem}")
    entries = [entry for manifest in manifests for entry in manifest.files]
    trajectories, size = sum(entry.trajectories for entry in entries), sum(entry.size for entry in entries)
    typer.echo(f"{source}: files that can be read: {len(entries):,}, with {trajectories:,} trajectories, {_size(size)}")
    severities = {finding.severity for finding in findings}
    if "unreachable" in severities:
        raise typer.Exit(1)
    if "error" in severities:
        raise typer.Exit(2)


@app.command()
def convert(
    files: Annotated[list[str], typer.Argument(metavar="FILE", help="Downloaded files of the data set.")],
    file_format: Annotated[
        Literal["pdebench", "pdearena", "pdegym", "bubbleml"],
        typer.Option("--format", help="Whose layout the files have."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the new files; made if missing.")],
) -> None:
    """Convert files of other data sets to The Well's format, which everything here reads."""
    from ..data.external import CONVERTERS

    for file in files:
        for written in CONVERTERS[file_format](file, output):
            typer.echo(f"wrote {written}")
