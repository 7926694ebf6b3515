"""Pretraining without a script of one's own: `accelerate launch -m walrus_hf.training --config FILE ...`"""

import sys
from collections.abc import Sequence

from accelerate import PartialState

from .arguments import parse_arguments
from .loop import pretrain


def main(arguments: Sequence[str] | None = None) -> None:
    """With these words of a command line; None takes the program's own.

    Settings that make no sense end the program in a sentence and with code 2, what fails later in a traceback.
    """
    try:
        settings = parse_arguments(arguments)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    folder = pretrain(settings)
    state = PartialState()
    if state.is_main_process:
        print(f"written: {folder}")
    state.destroy_process_group()


if __name__ == "__main__":
    main()
