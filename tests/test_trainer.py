"""The Trainer of transformers trains, accumulates, evaluates, predicts and resumes the model as it is."""

import pytest
import torch
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from .small_model import PERIODIC, small_inputs, small_model


class Frames(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        sample = small_inputs((16, 16, 1), batch=1, seed=index, labels=True, sides=PERIODIC)
        return {name: value[0] for name, value in sample.items()}


def trainer(path, model, **kwargs) -> Trainer:
    settings = {
        "max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "report_to": [], "use_cpu": True,
        "lr_scheduler_type": "constant", "save_strategy": "no", "seed": 1, "disable_tqdm": True, "logging_steps": 1,
        "optim": "sgd", "max_grad_norm": 0.0,
    }  # fmt: skip
    arguments = TrainingArguments(output_dir=str(path), **{**settings, **kwargs})
    return Trainer(model=model, args=arguments, train_dataset=Frames(), eval_dataset=Frames())


def test_gradient_accumulation_equals_one_large_batch(tmp_path):
    large = trainer(tmp_path / "large", small_model(), per_device_train_batch_size=16)
    small = trainer(tmp_path / "small", small_model(), per_device_train_batch_size=4, gradient_accumulation_steps=4)
    losses = [t.train().training_loss for t in (large, small)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    fresh = small_model().state_dict()
    for (name, one), other in zip(large.model.named_parameters(), small.model.parameters()):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4, msg=name)
    assert any(not torch.equal(p, fresh[name]) for name, p in large.model.named_parameters())


def test_the_trainer_evaluates_and_predicts(tmp_path):
    model = small_model()
    runner = trainer(tmp_path, model)
    inputs = small_inputs((16, 16, 1), batch=1, seed=0, labels=True)
    losses = []
    for seed in range(16):
        inputs = small_inputs((16, 16, 1), batch=1, seed=seed, labels=True)
        losses.append(model(**inputs).loss.item())
    assert runner.evaluate()["eval_loss"] == pytest.approx(sum(losses) / 16, rel=1e-4)
    prediction, delta = runner.predict(Frames()).predictions[:2]
    assert prediction.shape == delta.shape == (16, 3, 3, 16, 16, 1)
    torch.testing.assert_close(torch.tensor(prediction[-1:]), model(**inputs).prediction, atol=1e-5, rtol=1e-4)


def test_a_resumed_training_run_ends_where_an_uninterrupted_one_does(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch"}
    whole = trainer(tmp_path / "whole", small_model(drop_path_rate=0.3), max_steps=4, **settings)
    whole.train()
    trainer(tmp_path / "cut", small_model(drop_path_rate=0.3), max_steps=2, **settings).train()
    rest = trainer(tmp_path / "cut", small_model(seed=9, drop_path_rate=0.3), max_steps=4, **settings)
    rest.train(resume_from_checkpoint=get_last_checkpoint(str(tmp_path / "cut")))
    for (name, one), other in zip(whole.model.named_parameters(), rest.model.parameters()):
        torch.testing.assert_close(one, other, msg=name)
