"""Files and folders that are there whole or not at all: written under another name, then moved into place."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_file(path: Path, suffix: str = ".tmp") -> Iterator[Path]:
    """Gives a name to write to, and moves what is there to `path` at the end of the block.

    After an error in it neither a part of the file is left nor an old one lost.

    Args:
        suffix: of the name, for writers that go by it.

    Raises:
        OSError: the disk is full, ...; it names the file and how to mend it.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}{suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """The same for a folder; one that is there is replaced, and stays until the new one is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp makes private folders
        _move_into_place(temporary, path)
    except OSError as error:
        raise cannot_write(path, error, "folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _move_into_place(temporary: Path, path: Path) -> None:
    if not path.exists():
        os.replace(temporary, path)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}-old-", dir=path.parent))
    os.replace(path, old)
    try:
        os.replace(temporary, path)
    except OSError:
        os.replace(old, path)
        raise
    shutil.rmtree(old)


def cannot_write(path: Path, error: OSError, what: str = "file") -> OSError:
    """The same error with the name of what was to be written, and a remedy."""
    reason = " ".join((error.strerror or str(error)).split())
    message = f"{path}: expected to write the {what}, found {reason}; free space or choose another folder"
    return OSError(error.errno or errno.EIO, message)
