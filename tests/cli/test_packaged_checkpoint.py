"""Wherever a command asks for a model, the name of a checkpoint in the package will do."""


def test_info_knows_its_size(run):
    result = run("info", "--model", "walrus-nano", "--grid", "64x64")
    assert result.code == 0, result.err
    assert "walrus-nano: " in result.out
    assert "17 names" in result.out


def test_forecast_and_evaluate_take_it(run, file, tmp_path):
    output = tmp_path / "forecast.hdf5"
    result = run("forecast", file, "--model", "walrus-nano", "--steps", "2", "--output", output)
    assert result.code == 0, result.err
    assert output.is_file()
    result = run("evaluate", "--model", "walrus-nano", "--data", file, "--steps", "2", "--window", "1")
    assert result.code == 0, result.err
    assert "persistence" in result.out
