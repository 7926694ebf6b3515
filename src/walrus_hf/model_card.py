"""Model cards: what a checkpoint is, where it comes from, how it is used."""

from __future__ import annotations

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
