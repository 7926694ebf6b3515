"""A checkpoint or adapter as a repository on the Hub: which files it holds, what its card says, one commit.

Beside weights, configuration and processor a checkpoint takes along the code of the model, so that
`AutoModel.from_pretrained(repo, trust_remote_code=True)` needs no other package than transformers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, RepositoryNotFoundError, StrictDataclassError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.dynamic_module_utils import get_relative_import_files

from .adapter_files import RECORD_FILE, first_line
from .checkpoints import is_on_hub, is_packaged
from .configuration_walrus import WalrusConfig
from .model_card import RESULTS_FORMAT, adapter_card, checkpoint_card, pushed_card, without_folders
from .modeling_walrus import WalrusForPrediction

PROCESSOR = "preprocessor_config.json"
EVALUATION, RESULTS = "evaluation.json", "results.json"
WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
# What a repository is loaded from: files of these names that a push does not bring are of another state, and deleted.
STATE = re.compile(
    r"(adapter_)?config\.json|preprocessor_config\.json|walrus_adapter\.json|evaluation\.json|results\.json|"
    r"(adapter_)?model(-\d+-of-\d+)?\.safetensors(\.index\.json)?"
)
# What else is shared. All other files stay here: optimiser states, logs, data.
SHARED = re.compile(r"README\.md|LICENSE(\.\w+)?|[\w.-]+\.(gif|png)")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
AUTO_MAP = {
    "AutoConfig": "configuration_walrus.WalrusConfig",
    "AutoModel": "modeling_walrus.WalrusForPrediction",
    "AutoModelForTimeSeriesPrediction": "modeling_walrus.WalrusForPrediction",
}
PROCESSOR_AUTO_MAP = {
    "AutoProcessor": "processing_walrus.WalrusProcessor",
    "AutoFeatureExtractor": "processing_walrus.WalrusProcessor",
}


@dataclasses.dataclass(frozen=True)
class Upload:
    """The files of one commit.

    Attributes:
        repo_id: `ORG/NAME`.
        files: path in the repository -> file on this machine, or its content.
        left_out: names of the folder that are not uploaded.
    """

    repo_id: str
    files: Mapping[str, Path | bytes]
    left_out: Sequence[str] = ()

    @property
    def card(self) -> str:
        content = self.files["README.md"]
        return content.decode() if isinstance(content, bytes) else content.read_text(encoding="utf-8")

    def size(self, name: str) -> int:
        """Bytes of one file."""
        content = self.files[name]
        return len(content) if isinstance(content, bytes) else content.stat().st_size


def check_repository_name(repo_id: str) -> None:
    """`ValueError` for anything but `ORG/NAME`, in letters that the Hub takes."""
    validate_repo_id(repo_id)
    if repo_id.count("/") != 1:
        raise ValueError(f"repository: expected ORG/NAME such as my-lab/walrus-shear, found {repo_id!r}")


def prepare_upload(
    folder: str | Path,
    repo_id: str,
    *,
    results: str | Path | None = None,
    base_model: str | None = None,
    license: str | None = None,
    datasets: Sequence[str] = (),
    costs: Sequence[Mapping[str, Any]] = (),
) -> Upload:
    """What a push of a folder would upload; writes nothing and asks nobody.

    Args:
        folder: of `save_pretrained`, of `walrus-hf convert`, or of an adapter.
        repo_id: `ORG/NAME`.
        results: `results.json` of `walrus-hf evaluate` for these weights; of adapters that is not checked, since the
            hash is over the base as well.
        base_model: on the Hub or in the package; replaces the name in an adapter's configuration.
        license: identifier such as `cc-by-4.0`; None keeps what the folder's card says.
        datasets: names on the Hub of the data that it was trained on.
        costs: of typical grids, for a card that has to be written (`checkpoint_card`).

    Raises:
        ValueError: no checkpoint, one of another model, a damaged or pickled one, an adapter whose base has no name
            that others can load, results of other weights.
        FileNotFoundError: no such folder or results.
    """
    folder = Path(folder).expanduser()
    check_repository_name(repo_id)
    if not folder.is_dir():
        kind = "a file" if folder.exists() else "none"
        raise FileNotFoundError(f"{folder}: expected the folder of a checkpoint, found {kind}; check the path")
    adapter = (folder / "adapter_config.json").is_file()
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    _refuse_pickles(folder, names, adapter)
    files: dict[str, Path | bytes] = {}
    files |= {name: folder / name for name in names if STATE.fullmatch(name) or SHARED.fullmatch(name)}
    files |= _adapter_files(folder, base_model) if adapter else _checkpoint_files(folder)
    measured = None if results is None else read_results(Path(results))
    digest = None if adapter else weights_digest(folder)  # reads all weights
    if measured is not None:
        if digest is not None:
            _check_results(measured, Path(str(results)), folder, digest)
        files[EVALUATION] = _json_bytes(_without_paths(measured, repo_id))
    card = (folder / "README.md").read_text(encoding="utf-8") if "README.md" in names else ""
    local = _local_names(folder, base_model)
    for name, public in local.items():
        card = card.replace(f"`{name}`", f"`{public}`")
    if RESULTS in files:
        found = _read_json(folder / RESULTS)  # of `fit`, or of an evaluation in the same folder
        evaluated = found.get("format") == RESULTS_FORMAT
        files[RESULTS] = _json_bytes(_without_paths(found, repo_id) if evaluated else _retold(found, local))
    if adapter:
        base_model = base_model or _read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    weights = _hash_line(folder, digest)
    if not card or "[More Information Needed]" in card:  # what PEFT writes into the folder of every adapter
        card = _new_adapter_card(folder, str(base_model), weights) if adapter else _new_card(folder, costs, weights)
    pictures = [name for name in names if name.endswith(".gif") or name == "forecast.png"]  # the latter is fit's
    files["README.md"] = pushed_card(
        card,
        repo_id,
        license=license,
        base_model=base_model,
        datasets=datasets,
        results=measured,
        picture=min(pictures, key=lambda name: name.endswith(".png"), default=None),
        weights=weights,
    ).encode()
    left_out = [path.name for path in sorted(folder.iterdir()) if path.name not in files]
    return Upload(repo_id, dict(sorted(files.items())), left_out)


def push(
    upload: Upload,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
) -> str:
    """Upload in one commit, after the repository was made where there was none.

    What is there already becomes the commit before it; files of another state of the model, such as shards that are
    no longer in use, are deleted. An interrupted upload changes nothing, and goes on where it stopped when repeated.

    Args:
        private: None follows the owner's default for a new repository.
        token: None takes the one of `hf auth login` or `HF_TOKEN`.
        revision: branch to push to; made where there is none.

    Returns:
        Address of the commit.

    Raises:
        ValueError: no token, one that may not write there, or `private` for a repository that is public.
        OSError: the Hub was not reached, or the connection broke.
    """
    token = token or get_token()
    if token is None:
        raise ValueError(
            "expected a token of the Hub, found none; log in with `hf auth login`, or set HF_TOKEN to one that may "
            "write"
        )
    api, repo_id = HfApi(token=token, library_name="walrus_hf"), upload.repo_id
    with _hub_errors(api.endpoint, repo_id):
        api.create_repo(repo_id, private=private, exist_ok=True)
        if private and not api.model_info(repo_id).private:
            raise ValueError(
                f"{repo_id}: expected a private repository, found a public one, and nothing was uploaded; make it "
                "private in its settings, or choose another name"
            )
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        there = api.list_repo_files(repo_id, revision=revision)
        stale = [name for name in there if STATE.fullmatch(name) and name not in upload.files]
        operations = [CommitOperationAdd(name, content) for name, content in upload.files.items()]
        commit = api.create_commit(
            repo_id,
            [*operations, *(CommitOperationDelete(name) for name in stale)],
            commit_message=commit_message or "Upload with walrus_hf",
            revision=revision,
        )
    return commit.commit_url


@contextlib.contextmanager
def _hub_errors(endpoint: str, repo_id: str) -> Iterator[None]:
    """One line and a remedy for everything that the Hub refuses and the network breaks."""
    try:
        yield
    except (HTTPError, RuntimeError) as error:
        cause: BaseException = error
        while not isinstance(cause, HTTPError) and cause.__cause__ is not None:
            cause = cause.__cause__
        status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
        if status in (401, 403) or isinstance(cause, RepositoryNotFoundError):
            raise ValueError(
                f"{repo_id}: expected a token that may write there, found one that {endpoint} refuses ({status}); "
                "check the name, make a token with write access at huggingface.co/settings/tokens, and `hf auth login`"
            ) from error
        told = f"status {status}" if status else f"{type(cause).__name__}: {first_line(cause)}"
        raise OSError(
            f"{repo_id}: expected {endpoint} to take the files, found {told}; nothing in {repo_id} has changed, push "
            "again to go on"
        ) from error


def _refuse_pickles(folder: Path, names: Sequence[str], adapter: bool) -> None:
    weights = [name for name in names if WEIGHTS.fullmatch(name) or name == "adapter_model.safetensors"]
    pickles = [name for name in names if name.endswith(PICKLES)]
    if not adapter and "config.json" not in names:
        pickled = f"; {pickles[0]} is a pickle: `walrus-hf convert` makes a checkpoint of walrus.pt" if pickles else ""
        raise ValueError(f"{folder}: expected a folder of save_pretrained, found no config.json in it{pickled}")
    if not weights:
        found = f"a pickle, {pickles[0]}, which runs code when it is loaded" if pickles else "none"
        raise ValueError(
            f"{folder}: expected weights as safetensors, found {found}; load the model with its own code and save it "
            "with save_pretrained"
        )


def _checkpoint_files(folder: Path) -> dict[str, Path | bytes]:
    """Configuration, processor and code of a whole checkpoint."""
    settings = _read_json(folder / "config.json")
    if settings.get("model_type") != WalrusConfig.model_type:
        raise ValueError(
            f"{folder}: expected a checkpoint of model type 'walrus', found {settings.get('model_type')!r}"
        )
    if not (folder / PROCESSOR).is_file():
        raise ValueError(
            f"{folder}: expected a {PROCESSOR} beside the weights, found none; write it with the save_pretrained of "
            "the model's WalrusProcessor, or save a WalrusPipeline"
        )
    _check_weights(folder, read_config(folder))
    processor = _read_json(folder / PROCESSOR)
    return {
        "config.json": _json_bytes(settings | {"auto_map": AUTO_MAP}),
        PROCESSOR: _json_bytes(processor | {"auto_map": PROCESSOR_AUTO_MAP}),
        **{path.name: path for path in code_files()},
    }


def code_files() -> list[Path]:
    """The modules that travel with a checkpoint: model, processor, and what they import."""
    here = Path(__file__).parent
    roots = [here / "modeling_walrus.py", here / "processing_walrus.py"]
    imported = {Path(name) for root in roots for name in get_relative_import_files(root)}
    return sorted({*roots, *imported})


def read_config(folder: Path) -> WalrusConfig:
    """The configuration of a checkpoint; `ValueError` where it describes no model."""
    try:
        return WalrusConfig.from_pretrained(folder)
    except (OSError, StrictDataclassError, ValueError, TypeError) as error:
        reason = first_line(error.__cause__ or error)
        raise ValueError(f"{folder}: expected a config.json that describes a model, found {reason}") from error


def _check_weights(folder: Path, config: WalrusConfig) -> None:
    """Names and shapes in the safetensors against those of the model; the values are not read."""
    with torch.device("meta"):
        expected = {name: tuple(t.shape) for name, t in WalrusForPrediction(config).state_dict().items()}
    found: dict[str, tuple[int, ...]] = {}
    for file in _shards(folder):
        with _safetensors(file) as tensors:
            found |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    wrong = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"{folder}: expected the weights that its config.json describes, found {len(wrong)} others, such as "
            f"{name}: {found.get(name, 'missing')} instead of {expected.get(name, 'none')}; save the folder again"
        )


def _shards(folder: Path) -> list[Path]:
    """The files that a checkpoint is loaded from; `ValueError` where its index names one that is not there."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file() and index.is_file():
        raise ValueError(f"{folder}: expected one state of the model, found whole and sharded weights; remove one")
    if whole.is_file():
        return [whole]
    if not index.is_file():
        raise ValueError(f"{folder}: expected model.safetensors, or shards with {index.name}, found neither")
    names = sorted(set(_read_json(index).get("weight_map", {}).values()))
    missing = [name for name in names if not (folder / str(name)).is_file()]
    if missing or not names:
        raise ValueError(f"{folder}: expected all shards of {index.name}, found no {(missing or ['shard'])[0]}")
    return [folder / name for name in names]


def count_parameters(folder: Path) -> int:
    """Numbers in the safetensors of a checkpoint or adapter, from their headers."""
    adapter, total = (folder / "adapter_config.json").is_file(), 0
    for file in [folder / "adapter_model.safetensors"] if adapter else _shards(folder):
        with _safetensors(file) as tensors:
            total += sum(torch.Size(tensors.get_slice(name).get_shape()).numel() for name in tensors.keys())  # noqa: SIM118
    return total


def weights_digest(folder: Path) -> str:
    """SHA-256 over names and values of all tensors, as an evaluation takes it of a loaded model.

    That computes in the precision which config.json names, and the file of walrus-nano, to be small, has another.
    """
    dtype = read_config(folder).dtype
    places: dict[str, Path] = {}
    for file in _shards(folder):
        with _safetensors(file) as tensors:
            places |= dict.fromkeys(tensors.keys(), file)

    def stored() -> Iterator[tuple[str, Tensor]]:
        for name, file in sorted(places.items()):
            with _safetensors(file) as tensors:
                values = tensors.get_tensor(name)
                yield name, values.to(dtype) if dtype is not None and values.is_floating_point() else values

    return tensors_digest(stored())


def tensors_digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over names and values, which should come in the order of the names."""
    digest = hashlib.sha256()
    for name, values in tensors:
        digest.update(name.encode())
        digest.update(values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextlib.contextmanager
def _safetensors(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file}: expected safetensors, found a damaged file ({first_line(error)})") from error


def _adapter_files(folder: Path, base_model: str | None) -> dict[str, Path | bytes]:
    """The configuration of an adapter, with a base that others can load: from the Hub, or from the package."""
    settings = _read_json(folder / "adapter_config.json")
    base = base_model or settings.get("base_model_name_or_path")
    if not base or not (is_on_hub(str(base)) or is_packaged(str(base))):
        raise ValueError(
            f"{folder}: expected the base model's name on the Hub or in the package in adapter_config.json, found "
            f"{base!r}, which others cannot load; push the base first, and give its name with --base ORG/NAME "
            "(base_model=)"
        )
    with _safetensors(folder / "adapter_model.safetensors"):
        pass
    return {"adapter_config.json": _json_bytes(settings | {"base_model_name_or_path": base})}


def _hash_line(folder: Path, digest: str | None) -> str:
    """What a card says of the weights (`model_card.HASH`); those of adapters have no `weights_digest`."""
    if digest is not None:
        return f"Weights: SHA-256 `{digest}`, over names and values of all tensors."
    with (folder / "adapter_model.safetensors").open("rb") as file:
        return f"`adapter_model.safetensors`: SHA-256 `{hashlib.file_digest(file, 'sha256').hexdigest()}`."


def _new_card(folder: Path, costs: Sequence[Mapping[str, Any]], weights: str) -> str:
    """The card of a checkpoint that nobody has described."""
    config, settings = read_config(folder), _read_json(folder / PROCESSOR)
    frames = settings.get("context_frames", 6), settings.get("context_frames_3d", 3)
    return checkpoint_card(
        config, "Walrus", "A Walrus model that forecasts fields on uniform grids.", count_parameters(folder),
        provenance=weights, frames=frames, costs=costs, code=True,
    )  # fmt: skip


def _new_adapter_card(folder: Path, base: str, weights: str) -> str:
    """The card of an adapter that nobody has described."""
    settings = _read_json(folder / "adapter_config.json")
    rank = f" of rank {settings['r']}" if "r" in settings else ""
    kind = f"A {settings.get('peft_type', 'PEFT')} adapter{rank}"
    return adapter_card(base, kind, provenance=weights, recorded=(folder / RECORD_FILE).is_file())


def read_results(path: Path) -> dict[str, Any]:
    """What `walrus-hf evaluate` measured: results.json of a folder, or that file itself.

    Raises:
        FileNotFoundError: there is none, or an evaluation that has not finished.
        ValueError: another format, or a damaged file.
    """
    file = path / RESULTS if path.is_dir() else path
    if not file.is_file():
        unfinished = (file.parent / "partial").is_dir()
        found = "one that has not finished; the same command again finishes it" if unfinished else "none"
        raise FileNotFoundError(f"{path}: expected the folder of an evaluation with a results.json, found {found}")
    results = _read_json(file)
    if results.get("format") != RESULTS_FORMAT:
        raise ValueError(
            f"{file}: expected results of `walrus-hf evaluate` ({RESULTS_FORMAT}), found format "
            f"{results.get('format')!r}; evaluate again"
        )
    return results


def _check_results(results: Mapping[str, Any], file: Path, folder: Path, digest: str) -> None:
    found = results["model"]["weights"]
    if found != digest:
        raise ValueError(
            f"{file}: expected an evaluation of the weights in {folder} ({digest[:12]}), found one of others "
            f"({str(found)[:12]}); run `walrus-hf evaluate --model {folder}` again"
        )


def _local_names(folder: Path, base_model: str | None) -> dict[str, str]:
    """What this machine calls the base and the statistics that `fit` started from -> what others may read."""
    fitted, adapter = (
        _read_json(folder / name) if (folder / name).is_file() else {} for name in (RESULTS, "adapter_config.json")
    )
    bases = {str(base) for base in (adapter.get("base_model_name_or_path"), fitted.get("base")) if base}
    names = {base: base_model or public_name(base) for base in bases}
    settings = fitted.get("settings")
    statistics = settings.get("normalization") if isinstance(settings, dict) else None
    return names | ({statistics: Path(statistics).name} if isinstance(statistics, str) else {})


def public_name(base: str) -> str:
    """A base's name on the Hub or in the package; of another folder the last part, which is no path."""
    return base if is_on_hub(base) or is_packaged(base) else Path(base).name


def _retold(content: Any, names: Mapping[str, str], known: Sequence[str] = ()) -> Any:
    """JSON values whose texts are replaced by `names`, else told `without_folders`."""
    if isinstance(content, dict):
        return {key: _retold(value, names, known) for key, value in content.items()}
    if isinstance(content, list):
        return [_retold(value, names, known) for value in content]
    return names.get(content) or without_folders(content, known) if isinstance(content, str) else content


def _without_paths(results: Mapping[str, Any], repo_id: str) -> dict[str, Any]:
    """The same without names of folders on this machine, and of forecasts that stay here."""
    scenarios = {
        name: scenario | {"source": Path(scenario["source"]).name if "://" not in scenario["source"] else name}
        for name, scenario in results["scenarios"].items()
    }
    kept = {name: value for name, value in results.items() if name != "forecast_files"}
    sources = [scenario["source"] for scenario in results["scenarios"].values()]
    return _retold(kept | {"model": results["model"] | {"name": repo_id}, "scenarios": scenarios}, {}, sources)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: expected JSON, found an unreadable file ({first_line(error)})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected settings by name, found a {type(content).__name__}")
    return content


def _json_bytes(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
