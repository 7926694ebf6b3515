"""`python -m walrus_hf.training`: how settings that make no sense are refused."""

import pytest

from walrus_hf.training.__main__ import main


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sources", "a", "--max_seconds", "-1"], "error: max_seconds: expected a time above 0, found -1.0"),
        (["--output_dir", "there"], "error: sources: expected at least one, found none; name them in the recipe"),
        (["--config", "no/such.yaml"], "no/such.yaml"),
    ],
)
def test_settings_that_make_no_sense_end_the_program_in_a_sentence(words, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert message in error.splitlines()[-1]
    assert "Traceback" not in error
