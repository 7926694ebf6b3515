"""What does it cost to hold scales and jitter for k steps, as the cached rollout does?

    python examples/simulate.py runs/nano/data --recipe nano
    OMP_NUM_THREADS=1 python examples/experiments/holding.py --output runs/holding
    OMP_NUM_THREADS=1 python examples/experiments/holding.py --output runs/holding-tiny --tiny   # does it run?

`predict(..., use_cache=True, cache_steps=k)` renews scales and shifts every k steps and forecasts from a window that
grows in between; the published rollout renews all of it at each step. Forecasts of 60 frames of the test trajectories,
for k = 2, 4 and 8 beside it. To tell the causes apart, shifts, scales or both are also held over the usual window, for
8 steps, and scales for the whole forecast. The same command goes on after a stop.
"""

import argparse
import json
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from checkpoint import TINY, Checkpoint, forecast, parser, plan_for, windows_of
from common import FIRST, Results, Windows, ratio_interval, tiny_data, trajectories, write, written_to
from torch import Tensor

from walrus_hf import WalrusForPrediction
from walrus_hf.jitter import TokenizationPlan, with_shifts
from walrus_hf.model_card import markdown_table
from walrus_hf.modeling_walrus import mask_state
from walrus_hf.normalization import delta_scales, field_scales

NAME = "holding"
SCENARIOS = (
    "acoustic_scattering", "burgers", "euler_multi_quadrants_open", "gray_scott", "rayleigh_benard", "shear_flow",
    "wave", "advection_diffusion_3d",
)  # fmt: skip
VARIANT = 1
LEAD, LONGEST, ROWS = 60, 8, 4
CACHED = {f"k = {k}": k for k in (2, 4, LONGEST)}
BOTH = f"both, {LONGEST}"
# What is held over the usual window, and for how many steps.
USUAL = {
    f"shifts, {LONGEST}": (("shifts",), LONGEST), f"scales, {LONGEST}": (("scales",), LONGEST),
    BOTH: (("shifts", "scales"), LONGEST), "scales, throughout": (("scales",), LEAD),
}  # fmt: skip
SPANS = ((1, 10), (11, 30), (31, 60))  # lead times, and all of them


@torch.no_grad()
def held_rollout(
    model: WalrusForPrediction, windows: Windows, steps: int, every: int, held: Collection[str], seed: int = 0
) -> Tensor:
    """Forecast `(B, steps, C, H, W, D)` from a window that moves on as usual, with some things held.

    Args:
        every: steps between renewals of what is held.
        held: of `"shifts"` and `"scales"`; the others are renewed at each step. With none of them, or every step, this
            is `forecast`.
    """
    generator = torch.Generator().manual_seed(seed)
    plan: TokenizationPlan = plan_for(windows, generator=generator)
    given = dict(windows.inputs)
    state, _ = given.pop("field_values"), given.pop("boundary_conditions")
    frames, scales = [], {}
    for step in range(steps):
        renewed = step % every == 0
        if step and (renewed or "shifts" not in held):
            plan = with_shifts(plan, generator)
        if renewed or "scales" not in held:
            eps = model.config.scale_eps
            scales = {"value_scales": field_scales(state, eps), "change_scales": delta_scales(state, eps)}
        found = model(state, **given, **scales, plan=plan, frames_to_keep=1).prediction
        following = mask_state(found, given.get("padded_channels"), given.get("obstacle_mask"))
        state = torch.cat([state[:, 1:], following], 1)
        frames.append(following)
    return torch.cat(frames, 1)


def measure(given: argparse.Namespace, checkpoint: Checkpoint, results: Results) -> dict[str, dict[str, list]]:
    """Errors `(trajectories, steps)` by scenario and arm."""
    names, lead = (TINY, 4) if given.tiny else (SCENARIOS, LEAD)
    pipe, found = checkpoint.pipe, {}
    for name in names:
        folder = given.data / str(0 if given.tiny else VARIANT) / name / "data" / "test"
        windows = windows_of(pipe, trajectories(folder)[:ROWS], [FIRST], lead)
        arms = {
            "nothing changes": lambda w=windows: None,
            "k = 1": lambda w=windows: forecast(pipe, w, lead, hold_scales=False),
            **{
                arm: lambda w=windows, k=k: forecast(pipe, w, lead, use_cache=True, cache_steps=k, hold_scales=False)
                for arm, k in CACHED.items()
            },
            **{
                arm: lambda w=windows, h=held, n=every: held_rollout(pipe.model, w, lead, n, h)
                for arm, (held, every) in USUAL.items()
            },
        }
        found[name] = {
            arm: results.get(f"{name}, {arm}", lambda w=windows, f=run: w.errors(f()).round(5).tolist())
            for arm, run in arms.items()
        }
    return found


def costs(found: dict[str, dict[str, list]]) -> dict[str, dict[str, list[float]]]:
    """Arm -> window -> error over that of k = 1, the median over scenarios, with its 95% bootstrap interval."""
    lead = np.shape(next(iter(found.values()))["k = 1"])[1]
    spans = [*(span for span in SPANS if span[1] <= lead), (1, lead)]

    def errors(arm: str, span: tuple[int, int]) -> np.ndarray:  # (1, scenarios, trajectories)
        return np.array([[np.array(arms[arm])[:, span[0] - 1 : span[1]].mean(1) for arms in found.values()]])

    def middle(ratios: np.ndarray) -> np.ndarray:
        return np.median(ratios, axis=-1)

    return {
        arm: {
            f"{span[0]}:{span[1]}": [
                round(float(x), 4) for x in ratio_interval(errors(arm, span), errors("k = 1", span), middle)
            ]
            for span in spans
        }
        for arm in (*CACHED, *USUAL)
    }


def report(found: dict[str, dict[str, list]], cost: dict[str, dict[str, list[float]]], checkpoint: Checkpoint) -> str:
    spans = list(next(iter(cost.values())))
    total = spans[-1]
    rows = [[arm, *("{:.3f} ({:.3f} to {:.3f})".format(*row[span]) for span in spans)] for arm, row in cost.items()]
    arms = ["nothing changes", "k = 1", *CACHED, *USUAL]
    each = [
        [name, *(f"{np.median(np.mean(by_arm[arm], axis=1)):.3f}" for arm in arms)] for name, by_arm in found.items()
    ]
    said = []
    for arm in (*CACHED, *USUAL):
        middle, low, high = cost[arm][total]
        sure = "does not reach" if low > 1 or high < 1 else "reaches"
        more = "more" if middle > 1 else "less"
        said.append(f"- {arm}: {abs(middle - 1):.1%} {more} error over {total}; the interval {sure} zero.")
    better = sum(np.mean(by_arm["k = 1"]) < np.mean(by_arm["nothing changes"]) for by_arm in found.values())
    said.append(f"- All renewed, it is better than the forecast that nothing changes in {better} of {len(found)} "
                f"scenarios over {total}; errors are cut at 10.")  # fmt: skip
    window = ", ".join(f"{cost[f'k = {LONGEST}'][span][0] / cost[BOTH][span][0]:.2f} at {span}" for span in spans)
    return "\n".join(
        [
            "# What holding scales and jitter costs", "",
            "```bash", "python examples/simulate.py runs/nano/data --recipe nano",
            "OMP_NUM_THREADS=1 python examples/experiments/holding.py --output runs/holding", "```", "",
            f"{checkpoint.text()}. {len(found)} scenarios, {ROWS} test trajectories each, one seed of the jitter; "
            f"forecasts from frame {FIRST} on. VRMSE, mean over fields.", "",
            "Error over that of the published rollout (k = 1, all renewed at each step), the median over scenarios, "
            "with 95% bootstrap intervals over trajectories:", "",
            markdown_table(["held", *spans], rows), "", f"![errors over lead time]({NAME}.png)", "",
            f"VRMSE, mean over the steps {total}, median over trajectories:", "",
            markdown_table(["scenario", *arms], each), "", "What it says:", "", *said, "",
            "k = 2, 4 and 8 hold shifts and scales, renew both every k steps, and let the window grow by k - 1 frames, "
            "as the cached rollout does; the others keep the window. "
            f"So the error of k = {LONGEST} over that of *{BOTH}* is what the longer "
            f"window does, which the training never showed: {window}.", "",
        ]
    )  # fmt: skip


def draw(found: dict[str, dict[str, list]], cost: dict[str, dict[str, list[float]]], file: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12.5, 4.2), layout="constrained")
    styles = ["k-", "C0-", "C1-", "C3-", "C2:", "C4:", "C5:", "C6--"]
    for arm, style in zip(("k = 1", *CACHED, *USUAL), styles):
        curves = [np.median(by_arm[arm], axis=0) for by_arm in found.values()]
        left.plot(np.arange(1, len(curves[0]) + 1), np.median(curves, axis=0), style, label=arm)
    idle = np.median([np.median(by_arm["nothing changes"], axis=0) for by_arm in found.values()], axis=0)
    left.plot(np.arange(1, len(idle) + 1), idle, color="grey", lw=0.8, label="nothing changes")
    left.set(xlabel="step", ylabel="VRMSE, median over scenarios", yscale="log", title="error over lead time")
    left.legend(fontsize=8)
    spans = list(next(iter(cost.values())))
    for i, (arm, style) in enumerate(zip(cost, styles[1:])):
        middle, low, high = 100 * (np.array([cost[arm][span] for span in spans]).T - 1)
        place = np.arange(len(spans)) + 0.1 * (i - 3)
        # Of a median of few scenarios the interval need not hold the estimate, so it is a line of its own.
        right.vlines(place, low, high, color=style[:2])
        right.plot(place, middle, "o", color=style[:2], label=arm)
    right.axhline(0, color="black", lw=0.8)
    right.set(xticks=np.arange(len(spans)), xlabel="steps", ylabel="error over that of k = 1, %", title="what it costs")
    right.set_xticklabels(spans)
    right.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.savefig(file, dpi=100)
    plt.close(figure)


def main() -> None:
    given = parser(__doc__).parse_args()
    if given.tiny:
        tiny_data(given.data, TINY, (0,))
    checkpoint = Checkpoint.load(given)
    settings = {"variant": VARIANT, "lead": LEAD, "rows": ROWS}
    found = measure(given, checkpoint, checkpoint.results(given.output / NAME, given.tiny, **settings))
    cost, folder = costs(found), written_to(given)
    kept = {
        name: {arm: np.median(v, axis=0).round(4).tolist() for arm, v in arms.items()} for name, arms in found.items()
    }
    write(folder / f"{NAME}.json", json.dumps({**checkpoint.record(), "costs": cost, "curves": kept}, indent=1) + "\n")
    write(folder / f"{NAME}.md", report(found, cost, checkpoint))
    draw(found, cost, folder / f"{NAME}.png")
    print(report(found, cost, checkpoint))


if __name__ == "__main__":
    main()
