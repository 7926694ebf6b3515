"""Evaluate another Hugging Face model that forecasts fields: Poseidon's scOT (arXiv 2405.19101), in 30 lines.

    python examples/wrap_poseidon.py --tiny          # a stand-in of random weights, on simulated data
    python examples/wrap_poseidon.py --model camlab-ethz/Poseidon-T --data richtmyer_meshkov.hdf5

For the second, install scOT from github.com/camlab-ethz/poseidon. Its code was written for transformers 4, whose
`get_head_mask` it calls.
"""

import argparse
from types import SimpleNamespace

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from walrus_hf import Trajectory, WalrusProcessor, load_well
from walrus_hf.data import simulate
from walrus_hf.metrics import persistence, score

CHANNELS = ("density", "velocity_x", "velocity_y", "pressure")
# Of the data set CE-RM, whose 20 frames are one unit of time (scOT/problems/fluids/compressible.py).
MEAN, STD = (1.196, 0.0, 0.0, 1.565), (0.554, 0.243, 0.243, 0.896)


class PoseidonForecaster(nn.Module):
    """scOT behind `predict`, and behind `walrus_hf.evaluation.neural_baselines.train`: planes, from their last frame.

    `mean` and `std` (channels,) are those of the data it was trained on, `lead_time` is a frame in units of its time.
    """

    def __init__(self, model, mean, std, lead_time=0.05, channels=CHANNELS, processor=None):
        super().__init__()
        self.model, self.lead_time = model, lead_time
        self.mean, self.std = (torch.tensor(values).reshape(-1, 1, 1) for values in (mean, std))
        self.processor = processor or WalrusProcessor()
        self.ids = [self.processor.field2id[name] for name in channels]

    def forward(self, field_values, field_ids, labels=None, **_):
        order = [field_ids[0].tolist().index(i) for i in self.ids]
        frames = [
            None if x is None else (x[:, -1, order, ..., 0] - self.mean) / self.std for x in (field_values, labels)
        ]
        return self.model(pixel_values=frames[0], time=torch.full((len(frames[0]),), self.lead_time), labels=frames[1])

    @torch.no_grad()
    def predict(self, context: Trajectory, steps: int) -> Trajectory:
        inputs = self.processor(context.frames(-1))
        order = [inputs["field_ids"][0].tolist().index(i) for i in self.ids]
        forecast = torch.zeros(1, steps, *inputs["field_values"].shape[2:])
        for step in range(steps):
            forecast[0, step, order] = (self(**inputs).output * self.std + self.mean)[0, ..., None]
            inputs["field_values"] = forecast[:, step : step + 1]
        return self.processor.postprocess(forecast, context)


class StandIn(PreTrainedModel):
    """The interface of scOT: `pixel_values` (B, C, H, W), `time` (B,), `labels`; an output with `output` and `loss`."""

    config_class = PreTrainedConfig

    def __init__(self, config):
        super().__init__(config)
        self.mix = nn.Conv2d(config.num_channels, config.num_channels, 3, padding=1, padding_mode="circular")
        self.post_init()

    def forward(self, pixel_values, time, labels=None):
        output = pixel_values + time[:, None, None, None] * self.mix(pixel_values)
        loss = None if labels is None else nn.functional.l1_loss(output, labels)
        return SimpleNamespace(output=output, loss=loss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="name or folder of a Poseidon model")
    parser.add_argument("--data", help="Well file with density, velocity and pressure on a square plane")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    if arguments.tiny:
        model = StandIn(PreTrainedConfig(num_channels=len(CHANNELS)))
        flow = simulate.euler_multi_quadrants(0, grid=(32, 32), frames=8)
        fields = {name: flow.fields[name] for name in ("density", "pressure")}
        velocity = flow.fields["momentum"] / flow.fields["density"][..., None]
        whole = Trajectory({**fields, "velocity": velocity}, flow.boundary_conditions, axes=flow.axes, dt=flow.dt)
    elif arguments.model and arguments.data:
        from scOT.model import ScOT

        model, whole = ScOT.from_pretrained(arguments.model), load_well(arguments.data)
    else:
        parser.error("expected --model NAME --data FILE, or --tiny")
    forecaster = PoseidonForecaster(model.eval(), MEAN, STD)
    steps = min(5, whole.num_frames - 1)
    forecast, truth = forecaster.predict(whole.frames(0, 1), steps), whole.frames(1, 1 + steps)
    for who, found in (("scOT", forecast), ("persistence", persistence(whole.frames(0, 1), steps))):
        print(who, {name: values.round(4).tolist() for name, values in score(found, truth).items()})


if __name__ == "__main__":
    main()
