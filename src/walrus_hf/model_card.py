"""Model cards: what a checkpoint is, where it comes from, how it is used."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .checkpoints import is_on_hub
from .configuration_walrus import WalrusConfig
from .data.scenarios import SCENARIOS
from .fields import FLAG_NAMES
from .strides import MIN_CELLS

TAGS = ("physics", "partial-differential-equations", "surrogate-model", "walrus")
TASK = "time-series-forecasting"
PAPER = "arXiv [2511.15684](https://arxiv.org/abs/2511.15684)"
FOLDER = "path/to/this/folder"  # what cards call their checkpoint until it has a name on the Hub
RESULTS_FORMAT = "walrus_hf.evaluation/1"
NOT_MEASURED = "Not measured. `walrus-hf evaluate` measures, and `walrus-hf push --results` writes it here."
# What a push says of the weights. The hash of a converted file stands in a line of another form, and is kept.
HASH = re.compile(r"^(?:Weights|`adapter_model\.safetensors`): SHA-256 `[0-9a-f]+`.*$", re.MULTILINE)
# An absolute path and its last part; no address, no part of a name such as a/b.
PATH = re.compile(r"(?<![\w.:/\\~-])(?:~|[A-Za-z]:)?[\\/](?:[^\s\\/`'\"(),;]+[\\/])+([^\s\\/`'\"(),;:]+)")
UNCHECKED_BASE = "It holds no record of that base, so that another one of the same shapes is not refused."
UNKNOWN_TRAINING = "Not told by whoever saved this checkpoint."


def checkpoint_card(
    config: WalrusConfig,
    title: str,
    summary: str,
    parameters: int,
    *,
    provenance: str,
    training: str = UNKNOWN_TRAINING,
    evaluation: str = NOT_MEASURED,
    frames: tuple[int, int] = (6, 3),
    costs: Sequence[Mapping[str, Any]] = (),
    limits: Iterable[str] = (),
    model: str = FOLDER,
    code: bool = False,
    size: str | None = None,
    data: ModelCardData | None = None,
) -> str:
    """The card of a checkpoint, from the template beside this module.

    Args:
        parameters: how many the checkpoint has.
        provenance: where the weights come from, with their hash.
        training: the data it was trained on, with their licences.
        evaluation: what was measured, and how (`evaluation_text`).
        frames: the most frames that a forecast starts from, of planes and of volumes.
        costs: of typical grids: `grid`, `frames`, `fields`, `tokens`, `gflop` and `gib` of one forecast step.
        limits: beside those of every checkpoint.
        model: what `from_pretrained` is to load.
        code: whether the checkpoint brings its own code.
        size: text in place of the layers and parameters.
        data: header of the card.
    """
    names = [f"`{name}`" for name in config.field2id or {} if name not in FLAG_NAMES]
    card = ModelCard.from_template(
        data or ModelCardData(library_name="walrus_hf", pipeline_tag=TASK, tags=list(TAGS)),
        template_str=files(__package__).joinpath("model_card_template.md").read_text(encoding="utf-8"),
        title=title, summary=summary, model=model, code=code, frames=frames[0], frames_3d=frames[1],
        fields=f"any of these {len(names)}: {', '.join(names)}" if len(names) > 1 else "".join(names),
        scale_eps=f"{config.scale_eps:g}", min_cells=MIN_CELLS, tokens=config.tokens_per_axis,
        tokens_3d=config.tokens_per_axis_3d, jitter="on" if config.jitter else "off",
        size=size or size_text(config, parameters), costs=cost_table(costs), evaluation=evaluation,
        training=training, limits=list(limits), provenance=provenance,
    )  # fmt: skip
    return str(card)


def adapter_card(
    base: str,
    kind: str,
    *,
    provenance: str,
    training: str = UNKNOWN_TRAINING,
    evaluation: str = NOT_MEASURED,
    model: str = FOLDER,
    recorded: bool = True,
) -> str:
    """The card of an adapter that `fit` did not make; its base says what it reads.

    Args:
        base: name of the base model on the Hub, or of a checkpoint in the package.
        kind: such as "A LORA adapter of rank 8".
        recorded: whether its folder holds a record of its base (`AdapterRecord`); what PEFT saves by itself does not.
    """
    checked = "Any other base is refused." if recorded else UNCHECKED_BASE
    on_hub = is_on_hub(base)
    link = f"[{base}](https://huggingface.co/{base})" if on_hub else f"{base}, which comes with the package,"
    data = ModelCardData(
        library_name="peft", pipeline_tag=TASK, tags=[*TAGS, "adapter"], base_model=base if on_hub else None
    )
    return (
        f"---\n{data.to_yaml()}\n---\n\n# Walrus, an adapter\n\n"
        f"{kind} of {link} for `walrus_hf`. Fields, boundary conditions, grids, time "
        f"steps, history and cost are those of the base, whose card tells them. {checked}\n\n"
        "## Use\n\n```python\nfrom walrus_hf import WalrusPipeline, load_well, save_well\n\n"
        f'pipe = WalrusPipeline.from_pretrained("{model}")  # finds its base by itself\n'
        'given = load_well("simulation.hdf5", frames=6)\n'
        "forecast = pipe.predict(given, prediction_length=50, seed=0)\n"
        'without = pipe.predict(given, prediction_length=50, seed=0, adapter="base")\n'
        'save_well(forecast, "forecast.hdf5")\n```\n\n'
        f"## Evaluation\n\n{evaluation}\n\n## Training data\n\n{training}\n\n"
        "## Limits\n\nThe limits of the base hold. Of data unlike those it was trained on nothing is known; what the "
        "base knew there may be lost.\n\n"
        f"## Provenance\n\n{provenance}\n\n"
        f"## Citation\n\nMcCabe et al., Walrus: A Cross-Domain Foundation Model for Continuum Dynamics, {PAPER}.\n"
    )


def size_text(config: WalrusConfig, parameters: int) -> str:
    """Parameters and layers, in a sentence."""
    return (
        f"{parameters:,} parameters: {config.num_hidden_layers} layers of width {config.hidden_size}, "
        f"{config.num_attention_heads} heads, stem {config.stem_hidden_size}."
    )


def cost_table(costs: Sequence[Mapping[str, Any]]) -> str:
    """Operations and memory of one forecast step, by grid."""
    if not costs:
        return ""
    rows = [
        [
            row["grid"],
            row["frames"],
            row["fields"],
            f"{row['tokens']:,}",
            _three_digits(row["gflop"]),
            f"{row['gib']:.2f}",
        ]
        for row in costs
    ]
    head = ["grid, periodic", "frames", "fields", "tokens", "GFLOP a step", "GiB, float32"]
    return (
        "Counted, not timed: operations of one forecast step, and weights with working memory.\n\n"
        + markdown_table(head, rows)
        + "\n\n`walrus-hf info --model MODEL --grid 256x256` gives seconds on the device at hand."
    )


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def evaluation_text(results: Mapping[str, Any]) -> str:
    """Protocol and table of what `walrus-hf evaluate` wrote to `results.json`."""
    protocol, windows = results["protocol"], list(results["protocol"]["windows"])
    rows = []
    for name, scenario in results["scenarios"].items():
        field = _told_field(scenario)
        for who, found in scenario["forecasters"].items():
            cells = [_score(found["windows"].get(window, {}).get(field)) for window in windows]
            grid, split = "x".join(map(str, scenario["grid"])), scenario.get("split") or "-"
            start = "-" if scenario["start"] is None else scenario["start"]
            rows.append([name, split, grid, scenario["trajectories"], start, who, *cells])
    stride = protocol.get("frame_stride", 1)  # older results do not state it
    apart = f" of frames {stride} apart" if stride > 1 else ""
    members = f", means of ensembles of {protocol['ensemble_size']}" if protocol["ensemble_size"] > 1 else ""
    told = (
        f"Measured with `walrus-hf evaluate` (walrus_hf {results['versions']['walrus_hf']}, {results['device']}, "
        f"{results['model']['dtype']}) by the protocol `{protocol['name']}`: "
        f"forecasts{apart}{members}, jitter {'on' if protocol['jitter'] else 'off'}, seed {protocol['seed']}.\n\n"
        f"Median VRMSE over trajectories, mean of fields, by lead time in steps; in brackets the interval of "
        f"{100 * protocol['bootstrap']['level']:g} %. 1 is as good as the spatial mean; below `persistence` is skill."
    )
    head = ["scenario", "split", "grid", "trajectories", "from frame", "forecast", *windows]
    notes = [
        f"- {name}: {without_folders(note, [scenario['source']])}"
        for name, scenario in results["scenarios"].items()
        for note in scenario["notes"]
    ]
    return "\n\n".join([told, markdown_table(head, rows), *(["\n".join(notes)] if notes else [])])


def without_folders(text: str, known: Iterable[str] = ()) -> str:
    """A text for others: of paths, which tell who worked where, the last part alone.

    Args:
        known: paths and addresses that may stand in it, also relative ones and those with spaces.
    """
    for path in sorted(known, key=len, reverse=True):
        name = re.split(r"[\\/]", path.partition("?")[0].rstrip("\\/"))[-1]
        if name:
            text = re.sub(rf"(?<![\w.:/\\~-]){re.escape(path)}(?![\w-])", name, text)
    return PATH.sub(r"\1", text)


def _told_field(scenario: Mapping[str, Any]) -> str:
    """Whose errors a card tells; of a scenario without a usable trajectory, and so without fields, there are none."""
    return scenario["fields"][0] if len(scenario["fields"]) == 1 else "mean of fields"


def _score(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "-"
    if found["median"] is None or not math.isfinite(found["median"]):
        return "failed"
    low, high = found["median_low"], found["median_high"]
    text = f"{found['median']:.4f}"
    return text if low is None or not math.isfinite(low) else f"{text} [{low:.4f}, {high:.4f}]"


def evaluation_entries(results: Mapping[str, Any]) -> list[EvalResult]:
    """The model's scores for the `model-index` of a card, from which the Hub makes its tables."""
    entries = []
    for name, scenario in results["scenarios"].items():
        field = _told_field(scenario)
        # Files of one's own may hold the same scenario, but are not the data set on the Hub.
        known = SCENARIOS[name].repository if name in SCENARIOS and scenario["source"] == name else name
        for window, scores in scenario["forecasters"].get("model", {"windows": {}})["windows"].items():
            value = scores[field]["median"]
            if value is not None and math.isfinite(value):
                entries.append(
                    EvalResult(
                        task_type=TASK, dataset_type=known, dataset_name=scenario["title"] or name,
                        dataset_split=scenario.get("split"), metric_type="vrmse", metric_value=value,
                        metric_name=f"VRMSE, steps {window}, median over {scores[field]['count']} trajectories",
                    )
                )  # fmt: skip
    return entries


def pushed_card(
    text: str,
    repo_id: str,
    *,
    license: str | None = None,
    base_model: str | None = None,
    datasets: Sequence[str] = (),
    results: Mapping[str, Any] | None = None,
    picture: str | None = None,
    weights: str | None = None,
) -> str:
    """A card as it goes to the Hub: what is given here is added to its header, or replaces what stood there.

    Args:
        text: the card so far.
        repo_id: name on the Hub; stands in for the path in the card's example.
        license: identifier such as `cc-by-4.0`.
        datasets: that the model was trained on, by their names on the Hub.
        results: of `walrus-hf evaluate`, for the section "Evaluation" and the `model-index`.
        picture: a film or picture of the folder, shown on top.
        weights: the line with their hash (`HASH`), for the section "Provenance".
    """
    card = ModelCard(text)
    data: Any = card.data
    data.library_name = data.library_name or "walrus_hf"
    data.pipeline_tag = data.pipeline_tag or TASK
    data.tags = [*(data.tags or ()), *(tag for tag in TAGS if tag not in (data.tags or ()))]
    data.license = license or data.license
    if base_model is not None:
        data.base_model = base_model if is_on_hub(base_model) else None
    data.datasets = list(datasets) or data.datasets
    body = card.text.replace(FOLDER, repo_id)
    if results is not None:
        data.model_name = repo_id.rpartition("/")[2]
        data.eval_results = evaluation_entries(results)
        body = _with_section(body, "Evaluation", evaluation_text(results))
    if weights is not None:
        body = _with_hash(body, weights)
    if picture is not None and f"]({picture})" not in body:
        shown = f"![A forecast of this model]({picture})\n"
        heading = re.search(r"^# .*\n", body, re.MULTILINE)
        place = heading.end() if heading else 0
        body = f"{body[:place]}\n{shown}{body[place:]}"
    card.text = body
    return str(card)


def _with_section(text: str, heading: str, body: str) -> str:
    """The text with one section replaced; before the citation, else at the end, where it has none."""
    section = f"## {heading}\n\n{body}\n\n"
    found = re.search(rf"^## {heading}\n.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if found:
        return text[: found.start()] + section + text[found.end() :]
    last = re.search(r"^## Citation\n", text, re.MULTILINE)
    place = last.start() if last else len(text)
    return text[:place].rstrip("\n") + "\n\n" + section + text[place:]


def _with_hash(text: str, line: str) -> str:
    """The text with the hash of its weights, in place of the one of earlier weights."""
    if HASH.search(text):
        return HASH.sub(lambda _: line, text)
    found = re.search(r"^## Provenance\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return _with_section(text, "Provenance", f"{found[1].strip()}\n\n{line}" if found else line)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def published_training() -> str:
    """The data that the published weights were trained on, with their licences."""
    rows = [
        [s.title, f"`{s.repository}`", "x".join(map(str, s.grid)), s.licence]
        for s in SCENARIOS.values()
        if s.stage == "pretraining"
    ]
    table = markdown_table(["scenario", "data set", "grid", "licence"], rows)
    return f"By the authors, on these {len(rows)} scenarios (Table 5 of the paper):\n\n{table}"


def converted_card(config: WalrusConfig, source: str, digest: str, parameters: int) -> str:
    """Card of a checkpoint that `walrus-hf convert` made from the published file `source`."""
    data = ModelCardData(
        license="mit", library_name="walrus_hf", pipeline_tag=TASK, tags=list(TAGS), base_model="polymathic-ai/walrus"
    )
    return checkpoint_card(
        config, "Walrus, converted",
        f"A checkpoint of Walrus ({PAPER}), a space-time transformer that forecasts fields of fluids, plasmas, waves "
        "and active matter on uniform grids, converted for `walrus_hf`.",
        parameters,
        provenance=(
            f"- Source file: `{source}`, SHA-256 `{digest}`.\n"
            "- The weights are those of the source; only names and layout changed, and the scalar `encoder_dummy` was "
            "folded into the first convolution. Nothing was trained, and no accuracy was measured during the "
            "conversion.\n"
            "- Original model: Polymathic AI, [polymathic-ai/walrus](https://huggingface.co/polymathic-ai/walrus), MIT "
            "licence."
        ),
        training="By the authors of the source. The published weights saw the 19 scenarios of the paper's Table 5.",
        data=data,
    )  # fmt: skip


WHO = ("before", "after", "persistence")  # whose errors are told of a fine-tuning

FINETUNED = """---
{{ card_data }}
---

# {{ title }}

{{ what }} of Walrus (arXiv [2511.15684](https://arxiv.org/abs/2511.15684)), trained with `walrus_hf`.

```python
from walrus_hf import WalrusPipeline

pipe = WalrusPipeline.from_pretrained("path/to/this/folder")  # finds its base by itself
forecast = pipe.predict(trajectory, prediction_length={{ length }}, frames={{ frames }}, frame_stride={{ stride }})
```

## Training

- Base: `{{ base }}`.
- Data: `{{ data }}`.
- {{ steps }} optimiser steps, the best at step {{ best }}; {{ trained }} of {{ parameters }} parameters trained.
- Settings: {{ settings }}.

## Error on held-out data

VRMSE, mean over fields; 1 is as good as the spatial mean. Nothing is known beyond these data.

{{ table }}

## Citation

McCabe et al., Walrus: A Cross-Domain Foundation Model for Continuum Dynamics, arXiv 2511.15684.
"""


def finetuned_card(results: Mapping[str, Any]) -> str:
    """Card of what `fit` made.

    Args:
        results: the content of `results.json`.
    """
    settings, method = results["settings"], results["settings"]["method"]
    what = {"lora": "A LoRA adapter", "full": "A fine-tuned checkpoint", "head": "A checkpoint with a fine-tuned head"}
    data = ModelCardData(
        library_name="peft" if method == "lora" else "walrus_hf",
        base_model=results["base"] if is_on_hub(results["base"] or "") else None,
        tags=["physics", "partial-differential-equations", "surrogate-model", "walrus", *["lora"] * (method == "lora")],
    )
    adapter = ("preset", "rank") if method == "lora" else ()
    told = ("method", *adapter, "batch_size", "learning_rate", "normalization", "new_fields", "seed")
    card = ModelCard.from_template(
        data, template_str=FINETUNED, title=f"Walrus, fine-tuned on {results['data']}", what=what[method],
        length=settings["rollout_steps"], frames=results["frames"], stride=settings["frame_stride"],
        base=results["base"] or "a model that was not loaded from a folder", data=results["data"],
        steps=results["steps"], best=results["best_step"], trained=f"{results['trained_parameters']:,}",
        parameters=f"{results['parameters']:,}",
        settings=", ".join(f"{name} `{settings[name]}`" for name in told),
        table=markdown_table(["", *WHO], error_rows(results)),
    )  # fmt: skip
    return str(card)


def error_rows(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """What was forecast and the VRMSE of each in `WHO`, as text: one step, and a few lead times of forecasts.

    Args:
        results: the content of `results.json` that `fit` wrote.
    """
    curves, scored, count = results["rollout_vrmse"], results["held_out"]["scored"], results["held_out"]["windows"]
    share = f"all {count}" if scored == count else f"{scored} of {count}"
    lines = {f"one step, {share} held-out windows": [results["vrmse"][name] for name in WHO]}
    times = [t for t in (1, 2, 5, 10, 20) if t <= len(curves["after"])]
    lines |= {f"forecast, step {t}": [curves[name][t - 1] for name in WHO] for t in times}
    return [(what, *map(_error, values)) for what, values in lines.items()]


def _error(value: float | None) -> str:
    """In the file None stands for errors of forecasts that are not finite."""
    return "inf" if value is None or not math.isfinite(value) else f"{value:.4f}"
