"""The card of a converted checkpoint says what it is, where it comes from and under which licence."""

from huggingface_hub import ModelCard

from walrus_hf import WalrusConfig
from walrus_hf.model_card import converted_card


def card(**kwargs):
    return converted_card(WalrusConfig(**kwargs), source="walrus.pt", digest="abc123", parameters=1286199046)


def test_the_header_is_what_the_hub_reads():
    data = ModelCard(card()).data
    assert data.license == "mit"
    assert data.base_model == "polymathic-ai/walrus"
    assert data.library_name == "walrus_hf"
    assert "walrus" in data.tags


def test_the_text_states_provenance_size_and_what_was_not_measured():
    text = card()
    assert "`walrus.pt`, SHA-256 `abc123`" in text
    assert "MIT licence" in text
    assert "1,286,199,046 parameters: 40 layers of width 1408, 16 heads, stem 352" in text
    assert "no accuracy was measured" in text
    assert "{{" not in text


def test_the_fields_are_listed_without_the_flags():
    text = card(field2id={"pressure": 0, "closed_boundary": 1, "open_boundary": 2, "bias_correction": 3})
    assert "**Fields**: `pressure`." in text
    assert "closed_boundary" not in text


def test_the_state_of_the_jitter_is_told():
    assert "Patch jitter\n  is on." in card()
    assert "Patch jitter\n  is off." in card(jitter=False)
