"""`walrus-hf report`: one self-contained page from the folders that `walrus-hf evaluate` writes.

The page is report.html with report.css, report_charts.js and report.js in it, and everything to show as one JSON
object. It loads nothing from anywhere: its content security policy allows the two inlined texts by their hashes, and
pictures that stand in the page. Names from files reach it as JSON and are set as text, never as markup.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from ..hub import read_results
from ..safe_files import whole_file
from .folder import RESULTS
from .report_films import Source, films

DIGITS = 5  # of the numbers in the page; results.json has them all
FACTS = (
    "source", "title", "grid", "axes", "boundary_conditions", "dt", "trajectories", "frames", "start", "steps",
    "obstacle_cells", "transforms",
)  # fmt: skip
SHOWN = ("windows", "lead_time", "spectra", "physics", "ensemble", "failures")


def write_report(
    results: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    training: Sequence[str | os.PathLike[str]] = (),
    overwrite: bool = False,
) -> Path:
    """Write the page.

    Args:
        results: folders of `walrus-hf evaluate`. With several, each forecaster carries the name of its folder, and
            scenarios that several of them have stand in one table.
        output: `.html` file to write.
        training: folders of training runs with a `metrics.jsonl`, whose curves are shown too.
        overwrite: replace an existing file.

    Returns:
        The path.

    Raises:
        FileExistsError: the file exists and `overwrite` is false.
        FileNotFoundError: a folder without results, or without metrics.
        ValueError: results of another format, damaged ones, or two folders of one name.
        ImportError: the extra `plot` is not installed.
    """
    output = Path(output)
    if output.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"{output}: expected a file name that ends in .html")
    if output.exists() and not overwrite:
        raise FileExistsError(f"{output} exists; choose another name, or replace it with --overwrite")
    if not output.absolute().parent.is_dir():
        raise FileNotFoundError(f"{output}: expected an existing folder {output.absolute().parent}; create it first")
    text = page(content([Path(folder) for folder in results], [Path(folder) for folder in training]))
    with whole_file(output) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return output


def content(results: Sequence[Path], training: Sequence[Path] = ()) -> dict[str, Any]:
    """Everything the page shows, as JSON values."""
    folders = [path.parent if path.name == RESULTS else path for path in results]
    names = _names(folders)
    loaded = [read_results(folder) for folder in folders]
    runs: list[dict[str, Any]] = []
    scenarios: dict[str, Any] = {}
    sources: list[Source] = []
    for folder, name, found in zip(folders, names, loaded):
        try:
            runs.append({"name": name, **{key: found[key] for key in ("protocol", "model", "versions")},
                         "device": found.get("device"), "notes": found.get("notes", [])})  # fmt: skip
            for scenario, entry in found["scenarios"].items():
                _add_scenario(scenarios, scenario, entry, name)
            sources += [
                Source(folder, entry, _label(entry.get("forecaster", "model"), name))
                for entry in found["forecast_files"]
            ]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{folder / RESULTS}: expected results as `walrus-hf evaluate` writes them, found a damaged file "
                f"({type(error).__name__}: {error}); evaluate again"
            ) from error
    moving = films(sources)
    for scenario, made in moving.by_scenario.items():
        if scenario in scenarios:
            scenarios[scenario]["films"] = made
    return {
        "runs": runs, "windows": list(dict.fromkeys(w for run in runs for w in run["protocol"]["windows"])),
        "scenarios": scenarios, "unreadable": moving.notes, "first_only": moving.first_only,
        "training": _training(training),
    }  # fmt: skip


def page(shown: Mapping[str, Any]) -> str:
    """The text of the page."""
    folder = resources.files(__package__)
    html, style, charts, script = (
        (folder / name).read_text(encoding="utf-8")
        for name in ("report.html", "report.css", "report_charts.js", "report.js")
    )
    code = f"{charts}\n{script}"
    parts = {
        "STYLE_HASH": _hash(style), "SCRIPT_HASH": _hash(code), "STYLE": style, "SCRIPT": code,
        "DATA": embedded(shown),
    }  # fmt: skip
    for name, text in parts.items():  # data last: what stands in it is not looked through for places any more
        html = html.replace(f"@@{name}@@", text, 1)
    return html


def embedded(value: Any) -> str:
    """JSON that no HTML parser can take for markup, and no number is longer than it needs to be."""
    text = json.dumps(_short(value), ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _short(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _short(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_short(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _names(folders: Sequence[Path]) -> list[str]:
    """What to call each run: nothing where there is one."""
    if not folders:
        raise ValueError("expected at least one folder with results, found none")
    if len(folders) == 1:
        return [""]
    names = [folder.resolve().name for folder in folders]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"expected folders of different names, which tell them apart, found {twice[0]!r} twice")
    return names


def _add_scenario(scenarios: dict[str, Any], name: str, entry: Mapping[str, Any], run: str) -> None:
    """Under its name; a second run adds its forecasters and says where it measured something else."""
    notes = [f"{run}: {note}" if run else note for note in entry["notes"]]
    facts = {key: entry[key] for key in FACTS if key in entry}
    known = scenarios.setdefault(
        name,
        {"facts": facts, "fields": [], "forecasters": {}, "published": entry["published"], "notes": [], "films": []},
    )
    known["fields"] += [field for field in entry["fields"] if field not in known["fields"]]
    for forecaster, found in entry["forecasters"].items():
        known["forecasters"][_label(forecaster, run)] = {key: found[key] for key in SHOWN if key in found}
    different = [key for key in facts if key != "source" and facts[key] != known["facts"].get(key)]
    if different:
        notes.append(
            f"{run}: not the same as in the first run: " + ", ".join(f"{key} {facts[key]}" for key in different)
        )
    known["notes"] += notes


def _label(forecaster: str, run: str) -> str:
    return f"{forecaster} ({run})" if run else forecaster


def _training(folders: Sequence[Path]) -> dict[str, Any]:
    """run -> panel -> curve -> [steps, values]."""
    if not folders:
        return {}
    from ..curves import training_curves
    from ..training.records import METRICS_FILE, read_metrics

    found = {}
    for folder in folders:
        rows = read_metrics(folder)
        if not rows:
            raise FileNotFoundError(f"{folder}: expected a training run with rows in {METRICS_FILE}, found none")
        found[str(folder)] = {
            panel: {name: [steps.tolist(), values.tolist()] for name, (steps, values) in curves.items()}
            for panel, curves in training_curves(rows).items()
        }
    return found
