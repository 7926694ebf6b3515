"""The command line: `walrus-hf forecast | evaluate | convert | info | demo`, one module a command.

Exit codes: 0 done, 1 the machine failed (disk, memory, network), 2 the input cannot be used.
"""

from __future__ import annotations

import sys
import warnings

import typer
from huggingface_hub.errors import StrictDataclassError

from .convert import convert
from .demo import demo
from .evaluate import evaluate
from .forecast import forecast
from .info import info

app = typer.Typer(
    name="walrus-hf",
    help="Forecast continuum physics with the Walrus foundation model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (demo, forecast, evaluate, info, convert):
    app.command()(command)

# What a user can mend; the rest of OSError (full disk, no permission, no network) is the machine's.
USER_ERRORS = (
    ValueError, FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, ImportError,
    StrictDataclassError,
)  # fmt: skip


def main() -> None:
    """Entry point `walrus-hf`: every expected failure is one line on stderr."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # a command shows its own
    warnings.showwarning = _show_warning
    try:
        app()
    except USER_ERRORS as error:
        _fail(error, 2)
    except (OSError, MemoryError) as error:
        _fail(error, 1)


def _fail(error: BaseException, code: int) -> None:
    typer.secho(f"error: {' '.join(str(error).split()) or type(error).__name__}", fg="red", err=True)
    sys.exit(code)


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    typer.secho(f"warning: {' '.join(str(message).split())}", fg="yellow", err=True)
