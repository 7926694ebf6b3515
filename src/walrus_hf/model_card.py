"""Model cards: what a checkpoint is, where it comes from, how it is used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from .configuration_walrus import WalrusConfig
from .fields import FLAG_NAMES

CONVERTED = """---
{{ card_data }}
---

# {{ title }}

A checkpoint of Walrus (arXiv [2511.15684](https://arxiv.org/abs/2511.15684)), a space-time transformer that forecasts
fields of fluids, plasmas, waves and active matter on uniform 2D and 3D grids, converted for
`walrus_hf`.

## Use

```python
from walrus_hf import WalrusPipeline, load_well

pipe = WalrusPipeline.from_pretrained("path/to/this/folder")
forecast = pipe.predict(load_well("simulation.hdf5", frames=6), prediction_length=50)
```

## Provenance

- Source file: `{{ source }}`, SHA-256 `{{ digest }}`.
- The weights are those of the source; only names and layout changed, and the scalar `encoder_dummy` was folded into
  the first convolution. Nothing was trained, and no accuracy was measured during the conversion.
- Original model: Polymathic AI, [polymathic-ai/walrus](https://huggingface.co/polymathic-ai/walrus), MIT licence.

## Geometry

{{ parameters }} parameters: {{ layers }} layers of width {{ width }}, {{ heads }} heads, stem {{ stem }}.
About {{ tokens }} tokens an axis for planes and {{ tokens_3d }} for volumes; patch jitter {{ jitter }}.

Fields: {{ fields }}.

## Citation

McCabe et al., Walrus: A Cross-Domain Foundation Model for Continuum Dynamics, arXiv 2511.15684.
"""


def converted_card(config: WalrusConfig, source: str, digest: str, parameters: int) -> str:
    """Card of a checkpoint that `walrus-hf convert` made from the published file `source`."""
    data = ModelCardData(
        license="mit",
        library_name="walrus_hf",
        tags=["physics", "partial-differential-equations", "surrogate-model", "walrus"],
        base_model="polymathic-ai/walrus",
    )
    names = [f"`{name}`" for name in config.field2id or {} if name not in FLAG_NAMES]
    card = ModelCard.from_template(
        data,
        template_str=CONVERTED,
        title="Walrus, converted",
        source=source,
        digest=digest,
        parameters=f"{parameters:,}",
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        stem=config.stem_hidden_size,
        tokens=config.tokens_per_axis,
        tokens_3d=config.tokens_per_axis_3d,
        jitter="on" if config.jitter else "off",
        fields=", ".join(names),
    )
    return str(card)


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
        base_model=None if Path(results["base"]).exists() else results["base"],  # the Hub knows no folders of ours
        tags=["physics", "partial-differential-equations", "surrogate-model", "walrus", *["lora"] * (method == "lora")],
    )
    told = ("method", "preset", "rank", "batch_size", "learning_rate", "normalization", "new_fields", "seed")
    card = ModelCard.from_template(
        data, template_str=FINETUNED, title=f"Walrus, fine-tuned on {results['data']}", what=what[method],
        length=settings["rollout_steps"], frames=results["frames"], stride=settings["frame_stride"],
        base=results["base"] or "a model that was not loaded from a folder", data=results["data"],
        steps=results["steps"], best=results["best_step"], trained=f"{results['trained_parameters']:,}",
        parameters=f"{results['parameters']:,}",
        settings=", ".join(f"{name} `{settings[name]}`" for name in told), table=_error_table(results),
    )  # fmt: skip
    return str(card)


def _error_table(results: Mapping[str, Any]) -> str:
    """One step, and forecasts at a few lead times, before and after."""
    curves, who = results["rollout_vrmse"], ("before", "after", "persistence")
    times = [t for t in (1, 2, 5, 10, 20) if t <= len(curves["after"])]
    lines = {"one step, all held-out windows": [results["vrmse"][name] for name in who]}
    lines |= {f"forecast, step {t}": [curves[name][t - 1] for name in who] for t in times}
    rows = [f"| {what} | {' | '.join(f'{value:.4f}' for value in values)} |" for what, values in lines.items()]
    return "\n".join(["| | before | after | persistence |", "|---|---|---|---|", *rows])
