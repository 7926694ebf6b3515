"""Files and folders that are there whole or not at all: written under another name, then moved into place."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError


@contextlib.contextmanager
def whole_file(path: Path, suffix: str = ".tmp") -> Iterator[Path]:
    """Gives a name to write to, and moves what is there to `path` at the end of the block.

    After an error in it neither a part of the file is left nor an old one lost.

    Args:
        suffix: of the name, for writers that go by it.

    Raises:
        OSError: the disk is full, ...; it names the file and how to mend it.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise _cannot_write(path, error, "file") from error
    finally:
        with contextlib.suppress(OSError):  # the first error is the one to tell
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """A text as a `whole_file`."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Under a temporary name, then moved; numbers that are not finite become null, which JSON can hold."""
    write_text(path, json.dumps(finite(content), indent=1, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """The same with None in place of numbers that are not finite."""
    if isinstance(value, Mapping):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def remove_folder(path: Path) -> None:
    """Renamed first, so that nobody finds half of it after a kill; what an earlier kill left goes, too."""
    done = path.with_name(f".{path.name}-done")
    shutil.rmtree(done, ignore_errors=True)
    if path.is_dir():
        os.replace(path, done)
    shutil.rmtree(done, ignore_errors=True)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """The same for a folder; one that is there is replaced, and stays until the new one is complete."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        yield temporary
        temporary.chmod(0o755)  # mkdtemp makes private folders
        _move_into_place(temporary, path)
    except (OSError, SafetensorError) as error:  # safetensors has an error of its own for a full disk
        raise _cannot_write(path, error, "folder") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _move_into_place(temporary: Path, path: Path) -> None:
    if not path.exists():
        os.replace(temporary, path)
        return
    old = temporary.with_name(f"{temporary.name}-old")
    os.replace(path, old)
    try:
        os.replace(temporary, path)
    except OSError:
        os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _cannot_write(path: Path, error: Exception, what: str) -> OSError:
    """The same error with the name of what was to be written, and a remedy."""
    reason, code = str(error), errno.EIO
    if isinstance(error, OSError):
        reason, code = error.strerror or reason, error.errno or code
        named = None if error.filename is None else Path(str(error.filename)).absolute()
        if named is not None and path.parent.absolute() not in named.parents:
            reason += f" ({named})"
    reason = " ".join(reason.split())
    return OSError(code, f"{path}: expected to write the {what}, found {reason}; free space or choose another folder")
