"""What commands share: tables."""

from walrus_hf.cli.options import print_table


def test_units_in_brackets_stand_in_tables_as_they_are(capsys):
    print_table("two heights", ["field", "steps [s]"], [["height [m]", "1"], ["height [red]", "2"]])
    printed = capsys.readouterr().out
    for text in ("steps [s]", "height [m]", "height [red]"):
        assert text in printed
