"""Checkpoints that come with the package, one folder each, as `WalrusPipeline.save_pretrained` writes it.

`walrus-nano` is stored in bfloat16 and computes in float32, as its config.json says. `measure.py` in
`model_cards/walrus-nano/` makes the folder; the card there tells what it was trained on and how well it forecasts.
"""

import os
from pathlib import Path

HERE = Path(__file__).parent


def locate(name_or_path: str | os.PathLike) -> str:
    """What a name stands for: an existing path, else a packaged checkpoint (its folder), else a Hub id, as it is."""
    path = Path(name_or_path).expanduser()
    if path.exists():
        return str(path)
    return str(HERE / path if is_packaged(path) else name_or_path)


def is_packaged(name: str | os.PathLike) -> bool:
    """Whether a checkpoint of that name comes with the package; a path that exists wins over it."""
    path = Path(name).expanduser()
    packaged = HERE / path
    return not path.exists() and packaged.parent == HERE and (packaged / "config.json").is_file()


def is_on_hub(name: str) -> bool:
    """Whether a name is that of a Hub repository, `ORG/NAME`, and no path."""
    return name.count("/") == 1 and name[0] not in "~./" and not Path(name).expanduser().exists()
