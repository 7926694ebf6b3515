"""The quickstart runs from top to bottom where nothing is there yet, shows its pictures, and links to what exists."""

import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("exponax")

FILE = Path(__file__).parents[1] / "examples" / "notebooks" / "quickstart.ipynb"
# Put at its end: the model that it shows has to be worth showing.
SKILL = """
skill = {name: errors["walrus-nano"][name].mean() / errors["persistence"][name].mean() for name in forecast.fields}
assert np.mean(list(skill.values())) < 0.9, skill
"""


@pytest.fixture
def notebook():
    return nbformat.read(FILE, as_version=4)


def test_the_quickstart_runs_offline_and_its_model_beats_persistence(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook.cells.append(nbformat.v4.new_code_cell(SKILL))
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    shown = [kind for cell in notebook.cells for output in cell.get("outputs", []) for kind in output.get("data", {})]
    assert shown.count("image/gif") == 1
    assert shown.count("image/png") == 2
    written = {"forecast.gif", "forecast.png", "error_growth.png", "forecast.hdf5", "my-model"}
    assert {path.name for path in tmp_path.iterdir()} == written


def test_the_quickstart_is_stored_without_outputs(notebook):
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert cell.cell_type == "markdown" or (cell.outputs == [] and cell.execution_count is None)


def test_the_links_of_the_quickstart_lead_somewhere(notebook):
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert len(targets) > 4
    for target in targets:
        assert (FILE.parent / target).is_file(), target
