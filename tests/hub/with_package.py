"""Pushes, loads and fails against the Hub in HF_ENDPOINT; prints what it found. Run by test_hub.py in its own process.

`python -m tests.hub.with_package FOLDER` leaves inputs and forecasts in FOLDER, for the processes that come after.
"""

import contextlib
import io
import json
import os
import shutil
import sys
import time
import urllib.request
import warnings
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from huggingface_hub import HfApi, constants
from peft import LoraConfig, get_peft_model

from walrus_hf import Trajectory, WalrusForPrediction, WalrusPipeline, cli
from walrus_hf.adapter_files import AdapterRecord, fingerprint
from walrus_hf.adapters import Extension
from walrus_hf.evaluation.forecasters import describe_model
from walrus_hf.training.arguments import PretrainingArguments
from walrus_hf.training.objective import TrainingModel
from walrus_hf.training.saving import save_model

from ..small_model import small_config, small_model
from ..training.small_runs import MODEL
from .results import small_results
from .server import READER, WRITER

folder = Path(sys.argv[1])
found: dict = {}
# Waiting between two attempts is not what is tested, and small files have to arrive in several pieces.
time.sleep = lambda seconds: None
constants.DOWNLOAD_CHUNK_SIZE = 4096
warnings.simplefilter("ignore")


def control(**faults) -> None:
    urllib.request.urlopen(f"{constants.ENDPOINT}/control", json.dumps(faults).encode()).close()


def forecast(pipe: WalrusPipeline) -> np.ndarray:
    values = np.random.default_rng(0).normal(size=(4, 16, 24)).astype(np.float32)
    trajectory = Trajectory({"a": values}, {"x": "periodic", "y": ("wall", "open")})
    return pipe.predict(trajectory, prediction_length=2, seed=0, progress=False).fields["a"]


def equal(one: WalrusPipeline, other: WalrusPipeline) -> bool:
    ours, theirs = one.model.state_dict(), other.model.state_dict()
    same = all(torch.equal(ours[name], theirs[name]) for name in ours) and set(ours) == set(theirs)
    return same and bool((forecast(one) == forecast(other)).all())


def command(*arguments) -> dict:
    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["walrus-hf", *map(str, arguments)]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as stop:
            return {"code": int(stop.code or 0), "out": out.getvalue(), "err": err.getvalue()}


def refusal(call) -> str:
    try:
        call()
    except (ValueError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def forget_downloads() -> None:
    shutil.rmtree(Path(os.environ["HF_HOME"]) / "hub")


api = HfApi()
load = WalrusPipeline.from_pretrained

# Model, processor and pipeline.
pipe = WalrusPipeline(small_model(rope_learnable="shared"))
pipe.model.push_to_hub("lab/parts", max_shard_size="150KB")
pipe.processor.push_to_hub("lab/parts")
found["parts load equal"] = equal(load("lab/parts"), pipe)
found["commit"] = pipe.push_to_hub("lab/whole", license="cc-by-4.0", max_shard_size="150KB")
found["whole loads equal"] = equal(load("lab/whole"), pipe)
np.save(folder / "forecast.npy", forecast(pipe))

# A connection that breaks in the middle of a file.
shard = next(file for file in api.list_repo_tree("lab/whole") if file.path.startswith("model-00001"))
forget_downloads()
control(cut_reads={shard.lfs.sha256: 50_000})
found["cut download loads equal"] = equal(load("lab/whole"), pipe)

# Another state of the model over the first, beside a file of somebody else.
first = api.model_info("lab/whole").sha
api.upload_file(path_or_fileobj=b"mine", path_in_repo="notes.txt", repo_id="lab/whole")
changed = WalrusPipeline(small_model(seed=1, rope_learnable="shared"))
changed.push_to_hub("lab/whole", commit_message="Second weights")
found["new weights load equal"] = equal(load("lab/whole"), changed)
found["pinned revision loads equal"] = equal(load("lab/whole", revision=first), pipe)
pipe.push_to_hub("lab/whole", revision="first", max_shard_size="150KB")
found["branch loads equal"] = equal(load("lab/whole", revision="first"), pipe)
found["missing revision"] = refusal(lambda: load("lab/whole", revision="nothing"))
pipe.push_to_hub("lab/whole", max_shard_size="150KB")

# A model at the end of its training.
small = {"model_size": "tiny", "model": {**MODEL, "field2id": small_config().field2id}}
run = PretrainingArguments(["shear_flow"], output_dir=str(folder / "run"), push_to_hub="lab/trained", **small)
trained = WalrusForPrediction(run.config()).eval()
written = save_model(Accelerator(cpu=True), TrainingModel(trained), run.processor(trained.config), run, 6, {})
found["trained loads equal"] = equal(load("lab/trained"), load(written))
found["trained is what was trained"] = equal(load(written), WalrusPipeline(trained))

# An adapter, whose base lies on the same Hub.
base = WalrusForPrediction.from_pretrained("lab/whole")
record = AdapterRecord(Extension(), fingerprint(base))
adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False))
adapter = WalrusPipeline(adapted, pipe.processor, record)
adapter.model.peft_config["default"].base_model_name_or_path = str(folder)
found["adapter of a folder"] = refusal(lambda: adapter.push_to_hub("lab/adapter"))
adapter.push_to_hub("lab/adapter", base_model="lab/whole")
found["adapter loads equal"] = equal(load("lab/adapter"), adapter)
found["adapter differs from its base"] = bool((forecast(adapter) != forecast(pipe)).any())
adapter.push_to_hub("lab/adapter-of-another", base_model="lab/parts")  # equal weights under another name
load("lab/adapter-of-another")
changed.push_to_hub("lab/other-base")
adapter.push_to_hub("lab/lost-adapter", base_model="lab/other-base")
found["adapter on another base"] = refusal(lambda: load("lab/lost-adapter"))
np.save(folder / "adapter.npy", forecast(adapter))

# The command line, with an evaluation.
here = folder / "checkpoint"
private = WalrusPipeline(small_model(seed=2))
private.save_pretrained(here, "150KB")
(here / "film.gif").write_bytes(b"GIF89a")
(here / "optimizer.bin").write_bytes(b"not for others")
results = folder / "results.json"
results.write_text(json.dumps(small_results(describe_model(str(here), private))))
arguments = ["push", here, "--repo", "lab/private", "--private", "--results", results, "--license", "mit",
             "--dataset", "polymathic-ai/shear_flow"]  # fmt: skip
os.environ.pop("HF_TOKEN")
found["no token"] = command(*arguments)
os.environ["HF_TOKEN"] = "hf_wrong"
found["wrong token"] = command(*arguments)
os.environ["HF_TOKEN"] = READER
found["token that may only read"] = command(*arguments)
os.environ["HF_TOKEN"] = WRITER
found["private after refusals"] = refusal(lambda: load("lab/private"))
found["dry run"] = command(*arguments, "--dry-run")
found["files after the dry run"] = [str(file.relative_to(here)) for file in sorted(here.rglob("*"))]
control(puts_left=2)
found["interrupted"] = command(*arguments)
found["files after the interruption"] = api.list_repo_files("lab/private")
control(puts_left=None)
found["repeated"] = command(*arguments)
found["unchanged"] = command(*arguments)

# Who may read it.
found["private over public"] = refusal(lambda: changed.push_to_hub("lab/whole", private=True))
found["private loads equal"] = equal(load("lab/private"), private)
forget_downloads()
os.environ["HF_TOKEN"] = READER
found["reader loads equal"] = equal(load("lab/private"), private)
forget_downloads()
os.environ["HF_TOKEN"] = "hf_wrong"
found["reading with a wrong token"] = command("info", "--model", "lab/private")
os.environ.pop("HF_TOKEN")
found["reading without a token"] = command("info", "--model", "lab/private")
found["missing repository"] = command("info", "--model", "lab/nothing")
found["missing adapter or model"] = refusal(lambda: load("lab/nothing"))

# What the process without a network will find.
load("lab/whole"), load("lab/adapter")
print(json.dumps(found))
