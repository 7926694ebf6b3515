"""The folder of an evaluation: what is finished of it, whether it may go on, and the results when it is done.

    partial/settings.json          what the records were made with
    partial/<scenario>-<i>.json    one finished trajectory
    partial/forecasts/             forecasts for pictures

All is written under `partial/` until the end, so that results that are being replaced stay whole until then.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..data.manifest import SUFFIXES
from ..data.remote import local_path
from ..safe_files import finite, remove_folder, write_json, write_text
from .results import Record, markdown, write_parquet
from .sources import EvaluatedScenario

RESULTS, TRAJECTORIES, TABLE, FORECASTS, PARTIAL = (
    "results.json", "trajectories.parquet", "table.md", "forecasts", "partial",
)  # fmt: skip
# What an evaluation writes there; names that begin with a dot are of files that a crash left half written.
PARTS = re.compile(r"\..+|.+-\d+\.json|settings\.json|results\.json|trajectories\.parquet|table\.md|forecasts")


class EvaluationFolder:
    """A folder to write results to.

    Raises:
        FileExistsError: it holds results, and `overwrite` is off; or `partial/` holds what no evaluation writes.
        NotADirectoryError: there is a file of that name.
    """

    def __init__(self, path: str | os.PathLike, overwrite: bool) -> None:
        self.path, self.overwrite = Path(path).expanduser(), overwrite
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(f"{self.path}: expected a folder for the results, found a file")
        if (self.path / RESULTS).exists() and not overwrite:
            raise FileExistsError(
                f"{self.path} holds results already; choose another folder, or replace them with --overwrite"
            )
        self.partial = self.path / PARTIAL
        self.forecasts = self.partial / FORECASTS
        self._refuse_foreign_files()

    def require_packages(self) -> None:
        """`ImportError` before anything is computed, where the results could not be written."""
        if not all(find_spec(package) for package in ("pandas", "pyarrow")):
            raise ImportError("results are written with the extra `eval`: pip install 'walrus-hf[eval]'")

    def _refuse_foreign_files(self) -> None:
        """The folder of parts is taken away in the end, and somebody may have one of that name."""
        foreign = sorted(path.name for path in self.partial.glob("*") if not PARTS.fullmatch(path.name))
        if foreign or self.partial.is_file():
            raise FileExistsError(
                f"{self.partial}: expected nothing but parts of an evaluation, found {(foreign or ['a file'])[0]}; "
                "choose another folder"
            )

    def refuse_inside(self, scenario: EvaluatedScenario) -> None:
        """`ValueError` where this lies in a folder of data: its forecasts would be read as data the next time."""
        root = local_path(scenario.manifest.root)
        if root is None or scenario.source.endswith((*SUFFIXES, ".json")):  # files and manifests say what they hold
            return
        place = Path(root).resolve()
        if scenario.split is not None and place.parts[-2:] == ("data", scenario.split):
            place = place.parent  # other splits are data, too
        if self.path.resolve().is_relative_to(place):
            raise ValueError(
                f"output: expected a folder outside the data, found {self.path} in {place}, from where its forecasts "
                "would be read as data the next time; choose another folder"
            )

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Go on with what is finished, or begin.

        Raises:
            FileExistsError: the folder holds a part of another evaluation, and `overwrite` is off.
        """
        wanted = json.loads(json.dumps(finite(settings)))
        file = self.partial / "settings.json"
        if any(self.partial.glob("[!.]*")):  # nothing is in it where a kill came before the settings
            different = _first_difference(_load(file), wanted)
            if different is None:
                return
            if not self.overwrite:
                raise FileExistsError(
                    f"{self.path} holds a part of another evaluation ({different}); finish that one, choose another "
                    "folder, or start anew with --overwrite"
                )
            shutil.rmtree(self.partial)
        self.partial.mkdir(parents=True, exist_ok=True)
        write_json(file, wanted)

    def done(self, scenario: str) -> set[int]:
        """Numbers of the trajectories that are finished."""
        return {number for number, _ in self._files(scenario)}

    def save(self, scenario: str, number: int, record: Record) -> None:
        # Infinite errors are numbers here: json writes and reads them in its own way.
        write_text(self.partial / f"{scenario}-{number}.json", json.dumps(record))

    def records(self, scenario: str) -> list[Record]:
        """Of all finished trajectories, in order."""
        return [json.loads(file.read_text(encoding="utf-8")) for _, file in self._files(scenario)]

    def _files(self, scenario: str) -> list[tuple[int, Path]]:
        pattern = re.compile(re.escape(scenario) + r"-(\d+)\.json")
        found = [(pattern.fullmatch(file.name), file) for file in self.partial.iterdir()]
        return sorted((int(match[1]), file) for match, file in found if match)

    def forecast_files(self) -> list[dict[str, Any]]:
        found = []
        for file in sorted(self.forecasts.glob("*-forecast.hdf5")):
            stem = file.name.removesuffix("-forecast.hdf5")
            scenario, _, number = stem.rpartition("-")
            found.append({
                "scenario": scenario, "trajectory": int(number), "forecaster": "model",
                "forecast": f"{FORECASTS}/{file.name}", "truth": f"{FORECASTS}/{stem}-truth.hdf5",
            })  # fmt: skip
        return sorted(found, key=lambda entry: (entry["scenario"], entry["trajectory"]))

    def finish(self, results: Mapping[str, Any], tables: Iterable[Mapping[str, list]]) -> None:
        """Write the results, and take the parts away."""
        write_parquet(self.partial / TRAJECTORIES, tables)
        write_text(self.partial / TABLE, markdown(results))
        write_json(self.partial / RESULTS, results)
        if (self.path / FORECASTS).is_dir():
            for old in (self.path / FORECASTS).iterdir():
                if old.name.endswith(("-forecast.hdf5", "-truth.hdf5")):
                    old.unlink()
        if self.forecasts.is_dir():
            (self.path / FORECASTS).mkdir(exist_ok=True)
            for new in self.forecasts.iterdir():  # copied: whoever is killed here can finish later
                shutil.copy2(new, self.path / FORECASTS / new.name)
        for name in (TRAJECTORIES, TABLE, RESULTS):
            os.replace(self.partial / name, self.path / name)
        remove_folder(self.partial)  # half removed, they would be gone on with, without their forecasts


def _load(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _first_difference(found: Any, wanted: Any, where: str = "") -> str | None:
    """In words where two JSON values differ, or None."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for name in dict.fromkeys([*wanted, *found]):
            inner = f"{where}.{name}" if where else name
            different = _first_difference(found.get(name), wanted.get(name), inner)
            if different is not None:
                return different
        return None
    if found == wanted:
        return None
    texts = _around_difference(str(found), str(wanted))
    return f"{where or 'settings'}: {texts[0]}, now {texts[1]}"


def _around_difference(found: str, wanted: str) -> list[str]:
    """Both texts in 40 characters at most; what long ones have in common at the beginning is left out."""
    start = 0
    if max(len(found), len(wanted)) > 40:
        same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(found, wanted)))
        start = max(same - 20, 0)
    cut = ["..." * (start > 0) + text[start:] for text in (found, wanted)]
    return [text if len(text) <= 40 else text[:37] + "..." for text in cut]
