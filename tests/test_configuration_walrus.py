import json

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from walrus_hf import WalrusConfig, WalrusForPrediction
from walrus_hf.fields import PUBLISHED_FIELDS

from .small_model import small_config


def test_the_default_is_the_published_model():
    config = WalrusConfig()
    with torch.device("meta"):
        model = WalrusForPrediction(config)
    # The published 1,286,199,047 less the scalar that is folded into the encoder.
    assert sum(p.numel() for p in model.parameters()) == 1_286_199_046
    assert [name for name, _ in sorted(config.field2id.items(), key=lambda item: item[1])] == list(PUBLISHED_FIELDS)
    assert config.vocab_size == 67


def test_half_and_tiny_take_overrides():
    assert (WalrusConfig.half().hidden_size, WalrusConfig.half().num_hidden_layers) == (1088, 30)
    assert WalrusConfig.tiny(hidden_size=64).hidden_size == 64


@pytest.mark.parametrize(
    "config",
    [
        WalrusConfig(),
        WalrusConfig.tiny(patch_kernel_sizes=(8, 4), absolute_position_shape=(4, 6, 1), rope_learnable="per_axis"),
        small_config(drop_path_rate=0, jitter=True),
    ],
)
def test_a_config_survives_json_and_disk(config, tmp_path):
    again = WalrusConfig.from_dict(json.loads(config.to_json_string()))
    assert again.to_dict() == config.to_dict()
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    loaded._name_or_path = ""
    assert type(loaded) is WalrusConfig
    assert loaded.to_dict() == config.to_dict()
    assert list(loaded.field2id) == list(config.field2id)  # the file is sorted by name, the vocabulary by id


def test_tuples_and_lists_mean_the_same():
    with_tuples = small_config(patch_kernel_sizes=(8, 4), absolute_position_shape=(4, 6, 1))
    with_lists = small_config(patch_kernel_sizes=[8, 4], absolute_position_shape=[4, 6, 1])
    assert with_tuples.to_dict() == with_lists.to_dict()


def test_missing_flags_are_added_behind_the_vocabulary():
    config = WalrusConfig(field2id={"pressure": 0, "closed_boundary": 1})
    assert config.field2id == {"pressure": 0, "closed_boundary": 1, "bias_correction": 2, "open_boundary": 3}
    assert config.flag_ids == [2, 1, 3]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"jitter": 1}, "jitter"),
        ({"hidden_size": 30}, "30 and 4"),
        ({"patch_kernel_sizes": (16, 4)}, "patch_kernel_sizes"),
        ({"rope_learnable": "both"}, "both"),
        ({"absolute_position_shape": (4, 4)}, "absolute_position_shape"),
        ({"drop_path_rate": 1.5}, "drop_path_rate"),
        ({"field2id": {"a": 0, "b": 5}}, "field2id"),
    ],
)
def test_an_unusable_value_is_refused_by_name(wrong, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        small_config(**wrong)
