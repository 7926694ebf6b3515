"""Called by .ci/package where the wheel is installed alone: what it holds, what importing it costs, and that it works.

python .ci/check_package.py CHECKOUT FOLDER_OF_WHEEL_AND_SDIST
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import distributions
from pathlib import Path

SECONDS = 0.5  # that importing walrus_hf may take, once there is PreTrainedModel
OPTIONAL = {"accelerate", "datasets", "jax", "matplotlib", "pandas", "peft", "scipy", "xarray"}
LAZY = OPTIONAL | {"h5py", "rich", "typer"}  # brought along or not: importing walrus_hf does not import them
TIMING = """
import time
from transformers import PreTrainedModel
began = time.perf_counter()
import walrus_hf
print(time.perf_counter() - began)
"""
IMPORTED = f"import sys, walrus_hf; print(walrus_hf.__file__, *sorted({LAZY} & set(sys.modules)))"
FORECAST = """
import numpy as np
from walrus_hf import Trajectory, WalrusConfig, WalrusForPrediction, WalrusPipeline, load_well, save_well

values = np.random.default_rng(0).normal(size=(4, 24, 16)).astype(np.float32)
given = Trajectory({"pressure": values}, {"x": "periodic", "y": ("wall", "open")}, dt=0.1)
WalrusPipeline(WalrusForPrediction(WalrusConfig.tiny())).save_pretrained("model")
forecast = WalrusPipeline.from_pretrained("model").predict(given, prediction_length=2, seed=0, progress=False)
save_well(forecast, "forecast.hdf5")
again = load_well("forecast.hdf5").fields["pressure"]
assert again.shape == (2, 24, 16) and np.isfinite(again).all() and np.array_equal(again, forecast.fields["pressure"])
"""
PACKAGED = """
import sys
import numpy as np
from walrus_hf import Trajectory, WalrusPipeline

pipe = WalrusPipeline.from_pretrained(sys.argv[1])
values = np.random.default_rng(0).normal(size=(4, 32, 32)).astype(np.float32)
forecast = pipe.predict(Trajectory({"pressure": values}, {"x": "periodic", "y": "periodic"}), 2, progress=False)
assert np.isfinite(forecast.fields["pressure"]).all()
"""


def python(code: str, *arguments: str) -> str:
    """What a fresh interpreter prints; warnings and errors go where ours go."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


def check(holds: bool, told: str) -> None:
    if not holds:
        sys.exit(f"not fit for release: {told}")
    print(told)


def main() -> None:
    checkout, folder = Path(sys.argv[1]), Path(sys.argv[2])
    command = ["git", "-C", str(checkout), "ls-files"]
    tracked = set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")) - {""}

    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    with tarfile.open(sdist) as archive:
        missing = tracked - {name.partition("/")[2] for name in archive.getnames()}
    check(not missing, f"{sdist.name}: {len(tracked)} tracked files, {len(missing)} left out {sorted(missing)[:5]}")
    ours = {name.removeprefix("src/") for name in tracked if name.startswith("src/")}
    held = set(zipfile.ZipFile(wheel).namelist())
    other = {name for name in held - ours if ".dist-info/" not in name}
    told = f"{len(ours - held)} left out {sorted(ours - held)[:5]}, {len(other)} of others {sorted(other)[:5]}"
    check(not ours - held and not other, f"{wheel.name}: {len(ours)} tracked files of the package, {told}")

    installed = {package.metadata["Name"] for package in distributions()}
    check(not installed & OPTIONAL, f"{len(installed)} packages installed, optional ones: {installed & OPTIONAL or 0}")
    file, *loaded = python(IMPORTED).split()
    check(Path(file).is_relative_to(sys.prefix), f"imported from {file}")
    check(not loaded, f"imported along with it, of what may not be: {loaded or 'nothing'}")
    seconds = min(float(python(TIMING)) for _ in range(5))
    check(seconds < SECONDS, f"import walrus_hf: {seconds:.2f} s after PreTrainedModel, {SECONDS} s allowed")

    program = Path(sys.executable).with_name("walrus-hf")
    shown = subprocess.run([program, "--help"], stdout=subprocess.PIPE, text=True, check=True).stdout
    check("forecast" in shown, "walrus-hf --help")
    python(FORECAST)
    check(True, "a forecast of arrays, by a model saved and loaded, written and read")
    for name in sorted(
        {Path(name).parts[2] for name in ours if name.startswith("walrus_hf/checkpoints/")} - {"__init__.py"}
    ):
        python(PACKAGED, name)
        check(True, f'a forecast by from_pretrained("{name}")')


if __name__ == "__main__":
    main()
