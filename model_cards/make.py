"""Writes the cards in this folder: python model_cards/make.py

Each folder holds `results.json`, which has every number, and `README.md`, which is made of it. Nothing is measured
here: costs are counted, published results are copied from the package's `published_results.json`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCardData

from walrus_hf import WalrusConfig, WalrusForPrediction
from walrus_hf.cli.push import grid_costs
from walrus_hf.data.scenarios import SCENARIOS
from walrus_hf.evaluation.published import published_results
from walrus_hf.model_card import PAPER, TAGS, TASK, adapter_card, checkpoint_card, markdown_table, published_training

HERE = Path(__file__).parent
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


def main(output: Path = HERE) -> None:
    for name, (results, card) in {
        "walrus-1.3b": walrus(),
        "halfwalrus": half(),
        "adapter-template": template(),
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
