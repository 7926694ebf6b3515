"""The command line: `walrus-hf demo | forecast | evaluate | compare | report | convert | info | data | plan |
finetune | push`, one module a command.

Exit codes: 0 done, 1 the machine failed (disk, memory, network), 2 the input cannot be used.
"""

from __future__ import annotations

import sys
import warnings

import typer
from huggingface_hub.errors import StrictDataclassError

from ..allocator import keep_freed_memory
from . import compare, convert, data, demo, evaluate, finetune, forecast, info, plan, push, report

app = typer.Typer(
    name="walrus-hf",
    help="Forecast continuum physics with the Walrus foundation model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS = (
    demo.demo, forecast.forecast, evaluate.evaluate, compare.compare, report.report, info.info, convert.convert,
    plan.plan, finetune.finetune, push.push,
)  # fmt: skip
for command in COMMANDS:
    app.command()(command)
app.add_typer(data.app)

# What a user can mend; the rest of OSError (full disk, no permission, a URL that does not answer) is the machine's.
USER_ERRORS = (
    ValueError, FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, ImportError,
    StrictDataclassError,
)  # fmt: skip


def main() -> None:
    """Entry point `walrus-hf`: every expected failure is one line on stderr."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    keep_freed_memory()
    # A command shows its own progress bar, and its errors say what the libraries would log on the way.
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    warnings.showwarning = _show_warning
    try:
        app()
    except USER_ERRORS as error:
        _fail(error, 2)
    except (OSError, MemoryError) as error:
        _fail(error, 1)
    except RuntimeError as error:
        if "memory" not in str(error):  # torch has no other name for a full memory
            raise
        _fail(error, 1)


def _fail(error: BaseException, code: int) -> None:
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        # Without the number that Python puts before the words, and with the file that they are about.
        text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    if isinstance(error, MemoryError) or "out of memory" in text or "not enough memory" in text:
        text = f"not enough memory; a smaller grid, --tokens-per-axis or --ensemble needs less ({text or 'no details'})"
    typer.secho(f"error: {' '.join(text.split()) or type(error).__name__}", fg="red", err=True)
    sys.exit(code)


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    typer.secho(f"warning: {' '.join(str(message).split())}", fg="yellow", err=True)
