"""Pretraining without a script of one's own: `accelerate launch -m walrus_hf.training --config FILE ...`"""

from collections.abc import Sequence

from accelerate import PartialState

from .arguments import parse_arguments
from .loop import pretrain


def main(arguments: Sequence[str] | None = None) -> None:
    """With these words of a command line; None takes the program's own."""
    folder = pretrain(parse_arguments(arguments))
    state = PartialState()
    if state.is_main_process:
        print(f"written: {folder}")
    state.destroy_process_group()


if __name__ == "__main__":
    main()
