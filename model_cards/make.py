"""Writes the cards in this folder: python model_cards/make.py

Each folder holds `results.json`, which has every number, and `README.md`, which is made of it. Nothing is measured
here: costs are counted, published results are copied from the package's `published_results.json`, and those of
walrus-nano are what `walrus-nano/measure.py` has written.
"""

from __future__ import annotations

import collections
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCardData

from walrus_hf import WalrusConfig, WalrusForPrediction
from walrus_hf.cli.push import grid_costs
from walrus_hf.data.scenarios import SCENARIOS
from walrus_hf.evaluation.published import published_results
from walrus_hf.model_card import (
    PAPER,
    TAGS,
    TASK,
    adapter_card,
    checkpoint_card,
    markdown_table,
    published_training,
    size_text,
)

HERE = Path(__file__).parent
UNTRAINED = ("persistence", "linear_extrapolation", "dmd")
WINDOWS = {"Table 1": ("1", "1:20", "21:60"), "Table 8": ("1", "1:10", "11:30"), "Table 7": ("full trajectory",)}

CONVERSION = """The weights are not in this folder. Download `walrus.pt` and `extended_config.yaml` from
[polymathic-ai/walrus](https://huggingface.co/polymathic-ai/walrus) (Polymathic AI, MIT licence), then

```bash
walrus-hf convert walrus.pt --config extended_config.yaml --output walrus-1.3b
walrus-hf push walrus-1.3b --repo ORG/walrus-1.3b --dry-run
```

The conversion never runs code from the file, accounts for every tensor, changes names and layout alone, and writes the
SHA-256 of the file into the card that it makes. The tests compare the converted model with the published code at small
sizes and formula weights; **this project has not run the published weights**, so no forecast, film or error here is its
own."""

HALF = """No weights exist in public: the authors have published none, and this project has trained none. To train some:

```bash
accelerate launch --config_file examples/accelerate_configs/ddp.yaml \\
    examples/pretrain.py --config examples/configs/half.yaml
walrus-hf evaluate --model runs/half/model --data DATA --output evaluation
walrus-hf push runs/half/model --repo ORG/halfwalrus --results evaluation/results.json --license LICENCE --dry-run
```

A checkpoint made so brings a card with its own data, settings, errors and hash."""

FILL_IN = """A template. `walrus-hf finetune` writes a card with data, settings and errors into the folder of the
adapter that it trains, and `walrus-hf push` fills in base, licence, data sets, evaluation and hash:

```bash
walrus-hf push ADAPTER --repo ORG/NAME --base ORG/BASE --results evaluation/results.json \\
    --license LICENCE --dataset ORG/DATA
```

What only you know, write into its `README.md` before that: where the data come from and under which licence, what was
held out, on which grids and time steps it was tried, and where it failed."""


NANO = """The weights come with the package. They started from random ones and hold nothing of the published Walrus.

```bash
python examples/simulate.py runs/nano/data --recipe nano
OMP_NUM_THREADS=1 ACCELERATE_MIXED_PRECISION=bf16 python examples/pretrain.py --config examples/configs/nano.yaml
python model_cards/walrus-nano/measure.py --data runs/nano/data --run runs/nano/run
```

These commands train a model of this kind, from random weights in one run; the weights in the package came about in
stages (see above). The last one packs the running average of the weights into the package and makes this card, all but
the columns of trained baselines: those come from `examples/baselines.py` and `measure.py --baselines`. MIT licence."""


def main(output: Path = HERE) -> None:
    for name, (results, card) in {
        "walrus-1.3b": walrus(),
        "halfwalrus": half(),
        "adapter-template": template(),
        "walrus-nano": nano(),
    }.items():
        folder = output / name
        folder.mkdir(exist_ok=True)
        (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(card.rstrip("\n") + "\n", encoding="utf-8")


def walrus() -> tuple[dict[str, Any], str]:
    """The published model, converted."""
    config = WalrusConfig()
    published = published_results()
    entries = [entry for entry in published["entries"] if entry["model"] == "Walrus"]
    results = counted(config) | {
        "training": training(),
        "time_strides": [1, 5],
        "published": {**published, "entries": entries},
    }
    data = ModelCardData(
        license="mit", library_name="walrus_hf", pipeline_tag=TASK, tags=list(TAGS), base_model="polymathic-ai/walrus",
        datasets=sorted({s.repository for s in SCENARIOS.values() if s.stage == "pretraining"}),
    )  # fmt: skip
    card = checkpoint_card(
        config, "Walrus 1.3B",
        f"Walrus ({PAPER}), a space-time transformer that forecasts fields of fluids, plasmas, waves and active matter "
        "on uniform planes and volumes, as `walrus_hf` loads it.",
        results["parameters"], provenance=CONVERSION, costs=results["costs"],
        training=f"{published_training()}\n\nFrames were 1 to 5 apart, at random, without telling the model.",
        evaluation=published_text(results["published"]), data=data, model="path/to/walrus-1.3b",
        limits=[volumes(entries), "The training data hold FlowBench, whose licence forbids commercial use."],
    )  # fmt: skip
    return results, card


def half() -> tuple[dict[str, Any], str]:
    """The smaller geometry of the paper, without weights."""
    config = WalrusConfig.half()
    results = counted(config)
    card = checkpoint_card(
        config, "HalfWalrus",
        f"The smaller geometry of Walrus ({PAPER}, Table 2) for studies of data and training. This card is of a "
        "geometry, not of weights.",
        results["parameters"], provenance=HALF, costs=results["costs"], model="runs/half/model",
        training="The paper's was trained on eight anisotropic planes; `examples/configs/half.yaml` names them.",
        evaluation="Not measured. The paper shows errors of its own HalfWalrus in figures alone (Figures 8 and 9).",
    )  # fmt: skip
    results |= {"source": "arXiv 2511.15684, Table 2, Figures 8 and 9"}
    return results, card


def template() -> tuple[dict[str, Any], str]:
    """What the card of an adapter says, without an adapter."""
    card = adapter_card(
        "ORG/BASE", "An adapter", model="ORG/NAME", provenance=FILL_IN,
        training="Name, source and licence of the data.",
        evaluation="Not measured: the table of `walrus-hf evaluate` stands here, with its protocol, beside persistence "
        "and the base.",
    )  # fmt: skip
    return {"source": "arXiv 2511.15684", "base": None, "evaluation": None, "provenance": None}, card


def nano() -> tuple[dict[str, Any], str]:
    """The checkpoint in the package, from what `walrus-nano/measure.py` wrote."""
    folder = HERE / "walrus-nano"
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    added = folder / "baselines.json"
    results["source"] = "arXiv 2511.15684"
    results["baselines"] = json.loads(added.read_text(encoding="utf-8")) if added.is_file() else None
    results["summary"] = {part: standings(compared(results, part)) for part in ("test", "unseen")}
    results["summary"]["against_trained"] = against_trained(compared(results, "test"))
    config, weights, trained = WalrusConfig(**results["config"]), results["weights"], results["training"]
    card = checkpoint_card(
        config, "walrus-nano",
        f"A small Walrus ({PAPER}) that comes with `walrus_hf` and forecasts on a CPU. It was trained by this project, "
        "on simulations of its own alone; it is a model to try things with, and no surrogate for anything.\n\n"
        "![Truth, forecast and error of a shear flow of the test split](forecast.gif)",
        results["parameters"], model="walrus-nano", frames=(results["frames"]["planes"], results["frames"]["volumes"]),
        size=f"{size_text(config, results['parameters'])} Stored in {weights['stored']}, {weights['megabytes']} MB; "
        f"computes in {weights['computed']}.",
        costs=results["costs"], evaluation=nano_evaluation(results), training=nano_training(trained),
        provenance=f"{NANO}\n\nThe weights in the package were measured by `{trained['command']}`, where `long` "
        "holds the last stage of the training. Commit of the last "
        f"stage of their training: {trained['commit'] or 'not recorded'}. SHA-256 of `model.safetensors`: "
        f"`{weights['sha256']}`.",
        data=ModelCardData(license="mit", library_name="walrus_hf", pipeline_tag=TASK, tags=list(TAGS)),
        limits=[f"It was trained on frames that lie 1 to {trained['stride_max']} frames of the simulations apart, on "
                "grids as listed above; larger ones get larger patches, not more tokens."],
    )  # fmt: skip
    return results, card


def nano_training(trained: Mapping[str, Any]) -> str:
    """Data and settings."""
    rows = [
        [name, ", ".join(found["grids"]), "; ".join(variant_text(variant) for variant in found["variants"])]
        for name, found in trained["scenarios"].items()
    ]
    recipe = f"`{trained['recipe']}`" if trained["recipe"] else "a recipe that is not in this repository"
    table = markdown_table(["scenario of `walrus_hf.data.simulate`", "grids", "parameters of the variants"], rows)
    history = f" {trained['history']}" if trained.get("history") else ""
    return (
        f"{trained['source_count']} variants of {trained['scenario_count']} scenarios, each a source of "
        f"{trained['trajectories']} trajectories of {trained['frames_each']} frames (split `train`), simulated for "
        f"it:\n\n{table}\n\n{trained['steps']:,} optimiser steps in {trained['minutes']:,} minutes of one core, by "
        f"{recipe}: {trained['windows']:,} windows of {trained['frames']} frames and the "
        f"one after them (distance 1 to {trained['stride_max']}), rotated and placed in space at random, with jitter; "
        f"{beyond_the_recipe(trained)}"
        f"mode `{trained['mode']}`, seed {trained['seed']}, {'Muon and AdamW' if trained['muon'] else 'AdamW'}, "
        f"learning rate {trained['learning_rate']:g}, running average of the weights, decay {trained['ema_decay']:g}."
        f"{history}"
    )


def beyond_the_recipe(trained: Mapping[str, Any]) -> str:
    """What departs from the published recipe, where something does."""
    told = ""
    if trained.get("tokens"):
        told = f"tokens along an axis drawn for each micro-batch from {', '.join(map(str, trained['tokens']))}; "
    if trained.get("own_forecasts"):
        told += (
            f"a share of {trained['own_forecasts']:g} of the micro-batches after own forecasts of 1 to "
            f"{trained['own_steps']} steps, in windows as much longer; "
        )
    return told


def variant_text(variant: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in variant.items()) or "as they come"


def compared(results: Mapping[str, Any], part: str) -> dict[str, dict[str, Any]]:
    """Source -> forecaster -> windows, trained baselines included."""
    added = (results["baselines"] or {}).get(part, {})
    return {name: {**found["forecasters"], **added.get(name, {})} for name, found in results[part].items()}


def median(forecasters: Mapping[str, Any], who: str, window: str, statistic: str = "median") -> float:
    """Infinite where the forecast failed."""
    found = forecasters[who][window][statistic]
    return math.inf if found is None else found


def standings(sources: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By window: of how many sources the model's median is below that of persistence, and of the best of all others.

    Medians of few trajectories can be luck, so it also says where the mean is not below, and how often the intervals of
    both medians overlap.
    """
    found = {}
    for window in ("1", "1:10", "11:30"):
        behind, better, behind_mean, overlapping = [], collections.Counter(), [], 0
        for name, forecasters in sources.items():
            error = median(forecasters, "model", window)
            others = [who for who in forecasters if who != "model"]
            best = min(others, key=lambda who: median(forecasters, who, window))
            if not error < median(forecasters, "persistence", window):
                behind.append(name)
            if not error < median(forecasters, best, window):
                better[best.replace("_", " ")] += 1
            if not median(forecasters, "model", window, "mean") < median(forecasters, "persistence", window, "mean"):
                behind_mean.append(name)
            (low, high), (idle_low, idle_high) = (
                [median(forecasters, who, window, f"median_{end}") for end in ("low", "high")]
                for who in ("model", "persistence")
            )
            overlapping += low <= idle_high and idle_low <= high
        found[window] = {
            "sources": len(sources), "below_persistence": len(sources) - len(behind),
            "not_below_persistence": behind, "below_best": len(sources) - better.total(),
            "better": dict(better.most_common()), "below_persistence_by_mean": len(sources) - len(behind_mean),
            "not_below_persistence_by_mean": behind_mean,
            "intervals_overlap": overlapping,
        }  # fmt: skip
    return found


def against_trained(sources: Mapping[str, Mapping[str, Any]]) -> dict[str, list[int]]:
    """By window: how often the model's median is below that of every trained baseline, and of how many sources."""
    found = {}
    for window in ("1", "1:10", "11:30"):
        won = []
        for forecasters in sources.values():
            trained = [who for who in forecasters if who not in (*UNTRAINED, "model")]
            if trained:
                best = min(median(forecasters, who, window) for who in trained)
                won.append(median(forecasters, "model", window) < best)
        if won:
            found[window] = [sum(won), len(won)]
    return found


def told_against_trained(counts: Mapping[str, Sequence[int]]) -> str:
    told = ", ".join(f"{won} of {all_} at {window}" for window, (won, all_) in counts.items())
    return f"Lower than the median of every trained baseline: {told}."


def nano_evaluation(results: Mapping[str, Any]) -> str:
    """Protocol, what it comes to, and tables by window of lead time."""
    protocol, baselines, film = results["protocol"], results["baselines"], results["film"]
    held = "scales of the given frames held, " if results.get("hold_scales") else ""
    trained = "Baselines trained at equal budget: not measured." if baselines is None else baselines["budget"]
    return "\n\n".join([
        f"Measured by `measure.py` with the evaluator of `walrus-hf evaluate` (walrus_hf "
        f"{results['versions']['walrus_hf']}, {results['device']}) on the weights as they are in the package: "
        f"{protocol['steps']} steps from frame {protocol['start']} on, jitter on, {held}seed {protocol['seed']}. "
        "Numbers are medians over trajectories of the VRMSE, mean of fields; in brackets the bootstrap interval of "
        f"level {protocol['bootstrap']['level']:g}. 1 is as good as the spatial mean; below `persistence` is skill. "
        "The best of a row is bold. `results.json` has means as well.",
        f"`linear extrapolation` and `dmd` (dynamic modes of the {results['frames_of_dmd']} frames before the start; "
        f"walrus-nano reads the last {results['frames']['planes']}) need no training. {trained}",
        *([told_against_trained(results["summary"]["against_trained"])] if baselines else []),
        f"### Test split of the training sources\n\n{count(results['test'])} {verdict(results['summary']['test'])}",
        *tables(results, "test"),
        "### Simulations unlike the training data\n\nOther seeds, and what the column says; `simulations.py` has them. "
        f"{count(results['unseen'])} {verdict(results['summary']['unseen'])}",
        *tables(results, "unseen"),
        f"The film above is the first test trajectory of `{film['source']}`: VRMSE {film['vrmse']:.3f} over its "
        f"{film['steps']} steps. `tests/test_walrus_nano.py` forecasts the simulations under `fixed` in `results.json` "
        "again, and compares three digits.",
    ])  # fmt: skip


def count(sources: Mapping[str, Any]) -> str:
    return f"Trajectories a source: {max(found['trajectories'] for found in sources.values())}."


def verdict(windows: Mapping[str, Mapping[str, Any]]) -> str:
    """In how many sources the model is better, and where it is not."""
    parts = []
    for against, below, behind in (
        ("persistence", "below_persistence", "not_below_persistence"),
        ("the best other forecast of each source", "below_best", "better"),
    ):
        counts = ", ".join(f"{found[below]} of {found['sources']} at {name}" for name, found in windows.items())
        parts.append(f"Below {against} in {counts}.")
        for name, found in windows.items():
            lost = found[behind]
            if isinstance(lost, dict):  # who is better, in how many: the tables name the sources
                told = ", ".join(f"{who} in {number}" for who, number in lost.items())
            else:
                told = ", ".join(lost)
            if told:
                parts.append(f"{'**Not**' if behind == 'not_below_persistence' else 'Better'} at {name}: {told}.")
        if behind == "not_below_persistence":
            parts += by_means(windows)
    return " ".join(parts)


def by_means(windows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The same of means over trajectories, and how sure the medians are."""
    lost = {name: found["not_below_persistence_by_mean"] for name, found in windows.items()}
    counts = ", ".join(f"{found['below_persistence_by_mean']} at {name}" for name, found in windows.items())
    told = "; ".join(f"at {name} not {', '.join(names)}" for name, names in lost.items() if names)
    overlaps = ", ".join(f"{found['intervals_overlap']} at {name}" for name, found in windows.items())
    return [
        f"By means over trajectories in {counts}{f' ({told})' if told else ''}.",
        f"The intervals of both medians overlap in {overlaps}.",
    ]


def tables(results: Mapping[str, Any], part: str) -> list[str]:
    """One a window: sources down, forecasters across."""
    sources, parts = compared(results, part), []
    names = list(dict.fromkeys(who for forecasters in sources.values() for who in forecasters))
    for window, (first, last) in results["protocol"]["windows"].items():
        rows = []
        for source, forecasters in sources.items():
            facts = results[part][source]
            known = {who: median(forecasters, who, window) for who in names if window in forecasters.get(who, {})}
            cells = [cell(forecasters[who][window], who, known) if who in known else "-" for who in names]
            unlike = [facts["unlike"]] if part == "unseen" else []
            rows.append([source, "x".join(map(str, facts["grid"])), *unlike, *cells])
        head = ["source", "grid", *(["unlike"] if part == "unseen" else []), "walrus-nano"]
        head += [who.replace("_", " ") for who in names if who != "model"]
        title = "Step 1" if last == 1 else f"Steps {first} to {last}"
        parts.append(f"{title}:\n\n{markdown_table(head, rows)}")
    return parts


def cell(found: Mapping[str, Any], who: str, known: Mapping[str, float]) -> str:
    if found["median"] is None:
        return "failed"
    text = f"{found['median']:.4f}"
    text = f"**{text}**" if found["median"] == min(known.values()) else text
    told = who == "model" and found["median_low"] is not None  # a single trajectory has no interval
    return f"{text} [{found['median_low']:.4f}, {found['median_high']:.4f}]" if told else text


def counted(config: WalrusConfig) -> dict[str, Any]:
    """Geometry, parameters and costs."""
    with torch.device("meta"):
        parameters = sum(p.numel() for p in WalrusForPrediction(config).parameters())
    kept = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "stem_hidden_size",
            "tokens_per_axis", "tokens_per_axis_3d", "scale_eps", "field2id", "patch_kernel_sizes")  # fmt: skip
    settings = config.to_dict()
    return {
        "config": {name: settings[name] for name in kept}, "parameters": parameters,
        "frames": {"planes": 6, "volumes": 3}, "costs": grid_costs(config, parameters),
    }  # fmt: skip


def training() -> list[dict[str, Any]]:
    return [
        {"scenario": s.name, "title": s.title, "repository": s.repository, "grid": s.grid, "licence": s.licence}
        for s in SCENARIOS.values()
        if s.stage == "pretraining"
    ]


def published_text(published: dict[str, Any]) -> str:
    """The paper's tables, marked as what they are."""
    parts = [
        f"**Published, not run here**: {published['metric']}, from {published['source']}, by lead time in steps. "
        "Tables 1 and 8 are of models **fine-tuned on each data set**, not of these weights, whose errors grow much "
        "faster."
    ]
    heads = {
        "Table 1": "Scenarios of pretraining, after fine-tuning",
        "Table 8": "Scenarios that pretraining never saw, after fine-tuning",
        "Table 7": "Whole trajectories",
    }
    for table, windows in WINDOWS.items():
        entries = [entry for entry in published["entries"] if entry["table"] == table]
        rows = []
        for name in dict.fromkeys(entry["data_set"] for entry in entries):
            found = {entry["window"]: entry for entry in entries if entry["data_set"] == name}
            notes = "; ".join(f"{window}: {entry['note']}" for window, entry in found.items() if entry["note"])
            rows.append([name, *(number(found.get(window)) for window in windows), notes])
        parts.append(f"{heads[table]} ({table}):\n\n" + markdown_table(["data set", *windows, "note"], rows))
    parts.append("What to know of these numbers:\n\n" + "\n".join(f"- {caveat}" for caveat in published["caveats"]))
    return "\n\n".join(parts)


def number(entry: dict[str, Any] | None) -> str:
    return "-" if entry is None or entry["value"] is None else f"{entry['value']:g}"


def volumes(entries: list[dict[str, Any]]) -> str:
    """Where the authors' own models leave the truth."""
    lost = [e for e in entries if e["table"] == "Table 7" and e["value"] is not None and e["value"] > 1]
    names = ", ".join(f"{entry['data_set']} ({entry['value']:g})" for entry in lost)
    return f"Over whole trajectories the paper's own errors exceed those of the spatial mean in {names} (Table 7)."


if __name__ == "__main__":
    main()
