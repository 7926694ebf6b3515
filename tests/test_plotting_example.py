"""examples/rollout_animation.py runs as its first lines say."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import yaml

pytest.importorskip("matplotlib")
pytest.importorskip("exponax")
from PIL import Image

EXAMPLE = Path(__file__).parents[1] / "examples" / "rollout_animation.py"


def test_the_example_is_short_and_opens_with_its_commands():
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120
    assert sum("python examples/rollout_animation.py" in line for line in lines[:10]) == 4
    recipe = yaml.safe_load((EXAMPLE.parent / "configs" / "tiny.yaml").read_text(encoding="utf-8"))
    model = f"--model {recipe['output_dir']}/model"  # where pretrain.py saves
    assert any(model in line for line in lines[:10])


@pytest.mark.filterwarnings("ignore:grid .* is outside the published stride table")
@pytest.mark.parametrize(
    ("scenario", "film"), [("turbulence_3d", "gif"), pytest.param("shear_flow", "mp4", marks=pytest.mark.slow)]
)
def test_the_example_draws_every_kind_of_picture(tmp_path, monkeypatch, capsys, scenario, film):
    flags = ["--tiny", "--output", str(tmp_path), "--scenario", scenario, "--film", film]
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *flags])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    written = {Path(path).name for path in re.findall("wrote (.*)", capsys.readouterr().out)}
    pictures = {"panels.png", "spectra.png", "error_growth.png"} | (
        {"volume.png"} if scenario == "turbulence_3d" else set()
    )
    assert written == pictures | {f"film.{film}"} == {path.name for path in tmp_path.iterdir()}
    for name in pictures:
        assert Image.open(tmp_path / name).width == 960
