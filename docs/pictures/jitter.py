"""Draw docs/images/jitter.png: python docs/pictures/jitter.py

One wave through a strided convolution and a transposed one with random kernels (arXiv 2511.15684, section 3.2): spectra
of the output for one position of the grid, for the mean over all shifts, and the error against how many are averaged.
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

CELLS, STRIDE, KERNEL, WAVE = 128, 8, 12, 5


def patch_and_back(u, g, h, shift):
    """Roll, convolve with stride, convolve back, un-roll; everything periodic."""
    u = np.roll(u, shift)
    tokens = np.array([sum(g[j] * u[(i * STRIDE + j) % CELLS] for j in range(KERNEL)) for i in range(CELLS // STRIDE)])
    out = np.zeros(CELLS)
    for i, token in enumerate(tokens):
        for j in range(KERNEL):
            out[(i * STRIDE + j) % CELLS] += h[j] * token
    return np.roll(out, -shift)


def main() -> None:
    rng = np.random.default_rng(3)
    g, h = rng.normal(size=KERNEL), rng.normal(size=KERNEL)
    u = np.cos(2 * np.pi * WAVE * np.arange(CELLS) / CELLS)
    outputs = np.array([patch_and_back(u, g, h, shift) for shift in range(CELLS)])
    exact = outputs.mean(0)  # the mean over every shift: no alias is left
    unit = np.abs(np.fft.rfft(exact)).max()
    counts = 2 ** np.arange(8)
    errors = [
        np.mean([np.sqrt(np.mean((outputs[rng.integers(CELLS, size=k)].mean(0) - exact) ** 2)) for _ in range(400)])
        for k in counts
    ]
    fig, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained", width_ratios=(1, 1, 1))
    for ax, y, title in zip(axes, (outputs[0], exact), ("one position of the grid", "mean over all shifts")):
        ax.stem(np.abs(np.fft.rfft(y)) / unit, linefmt="0.6", markerfmt="o", basefmt=" ")
        for alias in range(CELLS // STRIDE, CELLS // 2 + 1, CELLS // STRIDE):
            ax.axvspan(alias - WAVE - 1, alias + WAVE + 1, color="tab:orange", alpha=0.15, lw=0)
        ax.set(title=title, xlabel="wavenumber", ylabel="amplitude", ylim=(0, None))
    axes[0].text(0.97, 0.95, "shaded: where\naliases fall", ha="right", va="top", transform=axes[0].transAxes)
    axes[1].sharey(axes[0])
    axes[2].loglog(counts, np.array(errors) / np.sqrt(np.mean(exact**2)), "o-", label="mean over k random shifts")
    axes[2].loglog(counts, errors[0] / np.sqrt(np.mean(exact**2)) / np.sqrt(counts), "k:", label=r"$1/\sqrt{k}$")
    axes[2].set(title="aliases left", xlabel="shifts averaged, k", ylabel="rms relative to the signal")
    axes[2].legend(frameon=False)
    fig.savefig(Path(__file__).parents[1] / "images" / "jitter.png", dpi=130)


if __name__ == "__main__":
    main()
