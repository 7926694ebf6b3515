"""Loads by trust_remote_code where walrus_hf cannot be imported; then, if told to, by walrus_hf from the cache.

Run by test_hub.py in its own process: `python without_package.py FOLDER [--cached]`.
"""

import sys
from importlib import import_module
from pathlib import Path

sys.modules["walrus_hf"] = None  # importing it fails from now on

import numpy as np  # noqa: E402
import torch  # noqa: E402
from transformers import (  # noqa: E402
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForTimeSeriesPrediction,
    AutoProcessor,
)

folder = Path(sys.argv[1])
config = AutoConfig.from_pretrained("lab/whole", trust_remote_code=True)
model, info = AutoModel.from_pretrained("lab/whole", trust_remote_code=True, output_loading_info=True)
assert not info["missing_keys"], info
assert not info["unexpected_keys"], info
assert type(model).__module__.startswith("transformers_modules."), type(model)
assert type(model.config) is type(config)
processor = AutoProcessor.from_pretrained("lab/whole", trust_remote_code=True)
assert type(AutoFeatureExtractor.from_pretrained("lab/whole", trust_remote_code=True)) is type(processor)
again = AutoModelForTimeSeriesPrediction.from_pretrained("lab/whole", trust_remote_code=True)
assert type(again) is type(model)
Trajectory = import_module(type(processor).__module__.rpartition(".")[0] + ".fields").Trajectory
values = np.random.default_rng(0).normal(size=(4, 16, 24)).astype(np.float32)
trajectory = Trajectory({"a": values}, {"x": "periodic", "y": ("wall", "open")})
inputs = processor(trajectory)
inputs["plan"] = processor.plan(trajectory.grid, trajectory.boundary_conditions, seed=0)
inputs.pop("boundary_conditions")
forecast = processor.postprocess(model.predict(num_steps=2, **inputs), trajectory).fields["a"]
np.testing.assert_allclose(forecast, np.load(folder / "forecast.npy"), rtol=1e-5, atol=1e-5)

if "--cached" in sys.argv:
    del sys.modules["walrus_hf"]
    from walrus_hf import Trajectory, WalrusPipeline

    for name, kept in {"lab/whole": "forecast.npy", "lab/adapter": "adapter.npy"}.items():
        pipe = WalrusPipeline.from_pretrained(name)
        trajectory = Trajectory({"a": values}, {"x": "periodic", "y": ("wall", "open")})
        forecast = pipe.predict(trajectory, prediction_length=2, seed=0, progress=False).fields["a"]
        np.testing.assert_allclose(forecast, np.load(folder / kept), rtol=1e-5, atol=1e-5)
assert torch.isfinite(torch.as_tensor(forecast)).all()
print("loaded")
