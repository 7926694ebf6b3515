"""The same with transformers' Trainer: a LoRA adapter on windows of your simulations.

python examples/finetune_trainer.py --model walrus-1.3b --data my_simulations/ --output runs/trainer
python examples/finetune_trainer.py --output runs/tiny --tiny      # a stand-in model and data: does it run?
"""

import argparse
from pathlib import Path

from finetune_lora import make_tiny
from peft import get_peft_model
from torch.utils.data import Dataset
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments

from walrus_hf import WalrusPipeline
from walrus_hf.data import collate
from walrus_hf.finetuning import lora_config
from walrus_hf.finetuning_data import Windows, check_fields, open_data, split_windows
from walrus_hf.strides import is_volume


class Frames(Dataset):
    """Windows of simulations, each as a batch of one; `collate` puts them together."""

    def __init__(self, windows: Windows, numbers):
        self.windows, self.numbers = windows, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int):
        return self.windows.read([self.numbers[index]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--data")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--max-steps", type=int, default=1000)
    parser.add_argument("--frames", type=int, default=6)
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    if given.tiny:
        given.model, given.data = make_tiny(given.output.with_name(f"{given.output.name}-stand-in"))
        given.max_steps, given.frames = 2, 3
    pipe, opened = WalrusPipeline.from_pretrained(given.model, device="cpu"), open_data(given.data)
    check_fields(pipe.processor, opened.template, opened.name)
    windows = opened.windows(given.frames, 1, pipe.processor)
    trained, held = (Frames(windows, numbers) for numbers in split_windows(windows))
    every = max(1, given.max_steps // 20)
    arguments = TrainingArguments(
        output_dir=str(given.output), max_steps=given.max_steps, per_device_train_batch_size=2, learning_rate=1e-3,
        eval_strategy="steps", eval_steps=every, save_steps=every, load_best_model_at_end=True, save_total_limit=2,
        gradient_checkpointing=True, label_names=["labels"], remove_unused_columns=False, prediction_loss_only=True,
        report_to=[], max_grad_norm=10.0,
    )  # fmt: skip
    trainer = Trainer(
        model=get_peft_model(pipe.model, lora_config()), args=arguments, data_collator=collate,
        train_dataset=trained, eval_dataset=held, callbacks=[EarlyStoppingCallback(5)],
    )  # fmt: skip
    trainer.train()
    if is_volume(opened.template.grid):
        pipe.processor.context_frames_3d = given.frames
    else:
        pipe.processor.context_frames = given.frames
    WalrusPipeline(trainer.model, pipe.processor).save_pretrained(given.output / "adapter")
    print(f"held-out loss {trainer.evaluate()['eval_loss']:.4f}; written: {given.output / 'adapter'}")


if __name__ == "__main__":
    main()
