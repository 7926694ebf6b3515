"""The trained model as a folder, with processor and card, and on the Hub if that is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from accelerate import Accelerator
from huggingface_hub import ModelCard, ModelCardData
from torch import nn

from ..checkpoints import is_on_hub
from ..hub import prepare_upload, public_name, push
from ..model_card import markdown_table
from ..modeling_walrus import WalrusForPrediction
from ..pipeline_walrus import WalrusPipeline
from ..processing_walrus import WalrusProcessor
from .arguments import PretrainingArguments
from .batches import source_name

CARD = """---
{{ card_data }}
---

# {{ title }}

A Walrus model (arXiv [2511.15684](https://arxiv.org/abs/2511.15684)) that was trained with `walrus_hf`.

```python
from walrus_hf import WalrusPipeline, load_well

pipe = WalrusPipeline.from_pretrained("path/to/this/folder")
forecast = pipe.predict(load_well("simulation.hdf5", frames={{ frames }}), prediction_length=50)
```

## Training

{{ steps }} optimiser steps{{ start }} on {{ sources }}; mode `{{ mode }}`, seed {{ seed }}, learning rate {{ rate }},
batch {{ batch }}, {{ frames }} input frames ({{ frames_3d }} of volumes).

## One-step error on held-out windows

{{ table }}

VRMSE of the frame after the last one; 1 is as good as the spatial mean. Nothing is known beyond these sources.

## Citation

McCabe et al., Walrus: A Cross-Domain Foundation Model for Continuum Dynamics, arXiv 2511.15684.
"""


def save_model(
    accelerator: Accelerator,
    model: nn.Module,
    processor: WalrusProcessor,
    arguments: PretrainingArguments,
    steps: int,
    errors: Mapping[str, Mapping[str, float]],
) -> Path:
    """Write `output_dir/model`, and push it as `walrus-hf push` does; a collective, the main process writes.

    Args:
        model: prepared; a module that holds the Walrus model as `model`.
        processor: `arguments.processor`.
        steps: that it was trained for.
        errors: of the last validation, for the card.

    Raises:
        ValueError, OSError: what the Hub refuses (`hub.push`); the folder is written by then.
    """
    folder = Path(arguments.output_dir) / "model"
    weights = accelerator.get_state_dict(model)
    if accelerator.is_main_process:
        bare = WalrusForPrediction(accelerator.unwrap_model(model).model.config)
        bare.load_state_dict({name.removeprefix("model."): value for name, value in weights.items()})
        WalrusPipeline(bare, processor).save_pretrained(folder)
        (folder / "README.md").write_text(trained_card(arguments, processor, steps, errors), encoding="utf-8")
    accelerator.wait_for_everyone()  # for the folder, but not for the Hub, which may refuse
    if accelerator.is_main_process and arguments.push_to_hub:
        push(prepare_upload(folder, arguments.push_to_hub))
    return folder


def trained_card(
    arguments: PretrainingArguments,
    processor: WalrusProcessor,
    steps: int,
    errors: Mapping[str, Mapping[str, float]],
) -> str:
    """What was trained on what, and how well it forecasts there."""
    names = [source_name(source, arguments.sources) for source in arguments.sources]
    rows = [(name, f"{error['vrmse']:.4f}", f"{error['persistence']:.4f}") for name, error in errors.items()]
    table = markdown_table(["scenario", "model", "persistence"], rows) if rows else "Not measured."
    start = arguments.model_name_or_path
    data = ModelCardData(
        library_name="walrus_hf", tags=["physics", "partial-differential-equations", "surrogate-model", "walrus"],
        base_model=start if start and is_on_hub(start) else None,
    )  # fmt: skip
    card = ModelCard.from_template(
        data, template_str=CARD, title=f"Walrus, trained on {len(names)} scenarios", frames=arguments.frames,
        frames_3d=processor.context_frames_3d, steps=steps,
        start=f" from the weights of `{public_name(start)}`" if start else "",
        sources=", ".join(f"`{name}`" for name in names),
        mode=arguments.mode, seed=arguments.seed, rate=arguments.learning_rate, batch=arguments.batch_size, table=table,
    )  # fmt: skip
    return str(card)
