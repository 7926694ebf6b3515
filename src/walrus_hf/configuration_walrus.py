# Copyright 2026 The walrus_hf authors. MIT licence.
"""Walrus model configuration."""

from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig

from .fields import FLAG_NAMES, PUBLISHED_FIELDS


@strict
class WalrusConfig(PreTrainedConfig):
    r"""Configuration of [`WalrusModel`] and [`WalrusForPrediction`]; the defaults are the published 1.3B model.

    Args:
        hidden_size (`int`): width of the token stream.
        intermediate_size (`int`): width of the gated MLP (of the gate and of the value each).
        num_hidden_layers (`int`): number of space-time blocks.
        num_attention_heads (`int`): heads of the time and of the space attention.
        stem_hidden_size (`int`): channels between the two convolution stages of encoder and decoder.
        hidden_act (`str`): activation of encoder, decoder and the MLP's gate.
        patch_kernel_sizes (`list[int]`): kernels of the two convolution stages, along every axis.
        tokens_per_axis (`int`): target of the tokenization for grids with one or two axes; the compute dial.
        tokens_per_axis_3d (`int`): the same for grids with three axes.
        field2id (`dict[str, int]`, *optional*): the field vocabulary; `None` is the published one of 67 names. The
            names of the three flag channels (`closed_boundary`, `open_boundary`, `bias_correction`) are added where
            they are missing.
        drop_path_rate (`float`): stochastic depth of the last block; it grows linearly from 0 at the first.
        field_dropout (`float`): probability of hiding an input field from the encoder in training.
        jitter (`bool`): patch jitter and token rolls, in training and in inference alike.
        rope_learnable (`str`, *optional*): `None` (constant rotary frequencies), `"shared"` (one learnable set for the
            three axes of a layer) or `"per_axis"`.
        absolute_position_shape (`list[int]`, *optional*): token grid `(H, W, D)` of a learned absolute position
            embedding added after the encoder; `None` has none.
        relative_attention_num_buckets (`int`): buckets of the T5 bias of the time attention.
        relative_attention_max_distance (`int`): distance in frames from which on all share the last bucket.
        scale_eps (`float`): smallest RMS scale of fields and deltas (1e-5 in pretraining, 1e-8 in fine-tuning).
        layer_norm_eps (`float`): of the query and key norms.
        num_separate_fields (`int`): how many of the last names of the vocabulary have parameters of their own for their
            columns in encoder and decoder, so that an adapter can train and store them without the others.
        seamless_decoder (`bool`): decode periodic axes without the published rule's seam in the first and last cell.
            Off by default: the published weights were trained with the seam.
        initializer_range (`float`): size of the attention and MLP output projections of a fresh model, relative to
            PyTorch's default. The published 1e-6 makes a fresh model forecast persistence.
    """

    model_type = "walrus"

    hidden_size: int = 1408
    intermediate_size: int = 2816
    num_hidden_layers: int = 40
    num_attention_heads: int = 16
    stem_hidden_size: int = 352
    hidden_act: str = "silu"
    patch_kernel_sizes: list[int] | tuple[int, ...] = (8, 4)
    tokens_per_axis: int = 32
    tokens_per_axis_3d: int = 16
    field2id: dict[str, int] | None = None
    drop_path_rate: float | int = 0.05
    field_dropout: float | int = 0.0
    jitter: bool = True
    rope_learnable: str | None = None
    absolute_position_shape: list[int] | tuple[int, ...] | None = None
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 32
    scale_eps: float = 1e-5
    layer_norm_eps: float = 1e-5
    num_separate_fields: int = 0
    seamless_decoder: bool = False
    initializer_range: float = 1e-6

    def __post_init__(self, **kwargs):
        names = self.field2id or {name: i for i, name in enumerate(PUBLISHED_FIELDS)}
        names = {str(name): int(i) for name, i in names.items()}
        for name in FLAG_NAMES:
            names.setdefault(name, max(names.values()) + 1)
        self.field2id = dict(sorted(names.items(), key=lambda item: item[1]))  # config.json sorts by name
        self.patch_kernel_sizes = list(self.patch_kernel_sizes)
        if self.absolute_position_shape is not None:
            self.absolute_position_shape = list(self.absolute_position_shape)
        super().__post_init__(**kwargs)

    def validate_walrus(self):
        """Refuses geometries that would run and be wrong; called by [`PreTrainedConfig`] after every construction."""
        counts = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "stem_hidden_size",
                  "tokens_per_axis", "tokens_per_axis_3d")  # fmt: skip
        for name, count in ((name, self.__dict__[name]) for name in counts):
            if count < 1:
                raise ValueError(f"{name}: expected at least 1, found {count}")
        if self.scale_eps <= 0 or self.hidden_act not in ACT2FN:
            raise ValueError(
                f"expected scale_eps > 0 and an activation of transformers, found {self.scale_eps}, {self.hidden_act!r}"
            )
        if sorted((self.field2id or {}).values()) != list(range(self.vocab_size)):
            raise ValueError(f"field2id: expected the ids 0 to {self.vocab_size - 1} once each, found {self.field2id}")
        if self.hidden_size % self.num_attention_heads or self.hidden_size // self.num_attention_heads < 8:
            raise ValueError(
                f"expected hidden_size to be num_attention_heads times a head size of at least 8, found "
                f"{self.hidden_size} and {self.num_attention_heads}"
            )
        last = [i for i in self.flag_ids if i >= self.vocab_size - self.num_separate_fields]
        if not 0 <= self.num_separate_fields < self.vocab_size or last:
            raise ValueError(
                f"num_separate_fields: expected names behind the flags, the last of {self.vocab_size}, found "
                f"{self.num_separate_fields}"
            )
        if self.patch_kernel_sizes != [8, 4]:
            raise ValueError(f"patch_kernel_sizes: only (8, 4) is implemented, found {self.patch_kernel_sizes}")
        if self.rope_learnable not in (None, "shared", "per_axis"):
            raise ValueError(f"rope_learnable: expected None, 'shared' or 'per_axis', found {self.rope_learnable!r}")
        if self.absolute_position_shape is not None and len(self.absolute_position_shape) != 3:
            raise ValueError(f"absolute_position_shape: expected (H, W, D), found {self.absolute_position_shape}")
        if not 0 <= self.drop_path_rate < 1 or not 0 <= self.field_dropout < 1:
            raise ValueError("drop_path_rate and field_dropout: expected probabilities in [0, 1)")

    @property
    def vocab_size(self) -> int:
        """Names in the field vocabulary, the three flags included."""
        return len(self.field2id or {})

    @property
    def flag_ids(self) -> list[int]:
        """Vocabulary ids of the interior, wall and open flags."""
        names = self.field2id or {}
        return [names[name] for name in FLAG_NAMES]

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def half(cls, **kwargs) -> "WalrusConfig":
        """HalfWalrus, about half the parameters (arXiv 2511.15684, Table 2)."""
        return cls(**{"hidden_size": 1088, "intermediate_size": 2176, "num_hidden_layers": 30, **kwargs})

    @classmethod
    def tiny(cls, **kwargs) -> "WalrusConfig":
        """A model that trains in minutes on a CPU: for tests, demos and debugging."""
        tiny = {
            "hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4,
            "stem_hidden_size": 24, "tokens_per_axis": 16, "tokens_per_axis_3d": 8,
        }  # fmt: skip
        return cls(**{**tiny, **kwargs})


__all__ = ["WalrusConfig"]
