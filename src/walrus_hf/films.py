"""Films of a forecast: drawn frame by frame for GIF and MP4 files, and as strips of frames for a page.

matplotlib, Pillow and imageio are imported only where something is drawn.
"""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .fields import Trajectory
from .panels import (
    ERROR_COLOUR,
    FORECAST_COLOUR,
    MIDDLE,
    OBSTACLE_COLOUR,
    TRUTH_COLOUR,
    WIDTH,
    Panel,
    Row,
    View,
    axis_label,
    colour_map,
    draw_image,
    draw_line,
    heading,
    lead_time,
    new_figure,
    panel_height,
)

GREYS, LEVELS = 32, 36  # colours of a GIF, 256 at most: greys from black to white, and those of each colour map
COLOURS = 255  # of a strip: one of the 256 is left for cells without a value


def film(
    rows: list[Row], forecast: Trajectory, view: View = MIDDLE, units: Mapping[str, str] | None = None
) -> tuple[int, Callable[[int], np.ndarray]]:
    """Number of frames, and a function that draws one: (height, width, 3) uint8."""
    lines = rows[0].is_lines
    figure, shown = (_line_film if lines else _image_film)(rows, forecast)
    head = heading(forecast, view, units)
    title = figure.suptitle(" \n ", fontsize=13)
    # All that stays is drawn once, the rest anew for each frame: three times as fast.
    figure.canvas.draw()
    figure.set_layout_engine("none")
    frames = [spine for artist, _ in shown for spine in artist.axes.spines.values()]  # pictures would cover them
    moving = [title, *(artist for artist, _ in shown), *frames]
    for artist in moving:
        artist.set_animated(True)
    figure.canvas.draw()
    background = figure.canvas.copy_from_bbox(figure.bbox)

    def draw(step: int) -> np.ndarray:
        for artist, panel in shown:
            values = panel.values[step - 1]
            artist.set_ydata(values) if lines else artist.set_data(values.T)
        when = f"{lead_time(forecast, step, units)}   (step {step} of {forecast.num_frames})"
        title.set_text(f"{head}\n{when}".strip())
        figure.canvas.restore_region(background)
        for artist in moving:
            figure.draw_artist(artist)
        picture = np.asarray(figure.canvas.buffer_rgba())[..., :3]
        return picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2].copy()  # films want even sizes

    return forecast.num_frames, draw


def _image_film(rows: list[Row], forecast: Trajectory) -> tuple[Any, list[tuple[Any, Panel]]]:
    """A row of truth, forecast and error for each field; forecasts alone stand side by side."""
    alone = len(rows[0].panels) == 1
    if alone:
        width = WIDTH if len(rows) > 1 else 0.6 * WIDTH
        figure = new_figure(0.9 + panel_height(rows[0], 0.8 * width / len(rows)), width)
        grid = figure.subplots(1, len(rows), squeeze=False).T
    else:
        figure = new_figure(0.8 + len(rows) * panel_height(rows[0], 0.24 * WIDTH))
        grid = figure.subplots(len(rows), 3, squeeze=False)
    shown: list[tuple[Any, Panel]] = []
    for axes, row in zip(grid, rows):
        images = [draw_image(a, panel, 1) for a, panel in zip(axes, row.panels)]
        shown += list(zip(images, row.panels))
        if alone:
            axes[0].set_title(row.label, fontsize=12)
            figure.colorbar(images[0], ax=axes[0], pad=0.03, aspect=25, label=row.unit)
            continue
        axes[0].set_ylabel(row.label, fontsize=12)
        figure.colorbar(images[1], ax=list(axes[:2]), pad=0.015, aspect=25, label=row.unit)
        figure.colorbar(images[2], ax=axes[2], pad=0.03, aspect=25, label=row.error_label)
    if not alone:
        for a, title in zip(grid[0], ("truth", "forecast", "error")):
            a.set_title(title, fontsize=12)
    return figure, shown


def _line_film(rows: list[Row], forecast: Trajectory) -> tuple[Any, list[tuple[Any, Panel]]]:
    """Truth and forecast in one panel, the error in a second one."""
    columns = 2 if len(rows[0].panels) == 3 else 1
    figure = new_figure(0.9 + 2.4 * len(rows))
    grid = figure.subplots(len(rows), columns, squeeze=False, sharex=True)
    shown: list[tuple[Any, Panel]] = []
    for axes_of_row, row in zip(grid, rows):
        for panel in row.panels:
            axes = axes_of_row[1 if panel.title == "error" else 0]
            shown.append((draw_line(axes, panel, forecast, 1), panel))
        axes_of_row[0].set_ylabel(f"{row.label} [{row.unit}]", fontsize=11)
        if columns == 2:
            axes_of_row[1].set_ylabel(row.error_label, fontsize=11)
    grid[0, 0].legend(loc="upper right", fontsize=10)
    for axes in grid[-1]:
        axes.set_xlabel(axis_label(forecast), fontsize=11)
    return figure, shown


# --- files ---------------------------------------------------------------------------------------------------------


def write_gif(path: Path, frames: int, draw: Callable[[int], np.ndarray], fps: float, palette: list[int]) -> None:
    """One palette for the whole film and no dithering: no flicker, and unchanged cells cost nothing."""
    from PIL import Image

    colours = Image.new("P", (1, 1))
    colours.putpalette(palette)

    rest = (_reduced(draw(step), colours) for step in range(2, frames + 1))
    _reduced(draw(1), colours).save(
        path, format="GIF", save_all=True, append_images=rest, duration=round(1000 / fps), loop=0
    )


def _reduced(pixels: np.ndarray, colours: Any) -> Any:
    """A picture (height, width, 3) with the palette of the picture `colours`."""
    from PIL import Image

    reduced = Image.fromarray(pixels).quantize(palette=colours, dither=Image.Dither.NONE)
    reduced.paste(GREYS - 1, mask=Image.fromarray(pixels.min(axis=-1) == 255))  # Pillow makes white a light grey
    return reduced


def palette_of(rows: list[Row]) -> list[int]:
    """At most 256 colours, as numbers of red, green and blue: those of the colour maps or lines, and greys."""
    from matplotlib.colors import LinearSegmentedColormap

    if rows[0].is_lines:
        ends = (TRUTH_COLOUR, FORECAST_COLOUR, ERROR_COLOUR)
        maps: list[Any] = [LinearSegmentedColormap.from_list("line", ["white", end]) for end in ends]
    else:
        maps = [colour_map(name) for name in sorted({panel.colours for row in rows for panel in row.panels})]
    greys = np.repeat(np.linspace(0, 255, GREYS), 3)
    ramps = [255 * colours(np.linspace(0, 1, LEVELS))[:, :3].ravel() for colours in maps]
    return [round(float(level)) for level in np.concatenate([greys, *ramps])]


def write_mp4(path: Path, frames: int, draw: Callable[[int], np.ndarray], fps: float) -> None:
    try:
        import imageio.v2 as imageio
        import imageio_ffmpeg  # noqa: F401  (imageio finds it by itself)
    except ImportError as error:
        raise ImportError("MP4 files need the extra `plot`: pip install 'walrus-hf[plot]'") from error
    writer: Any = imageio.get_writer(path, format="FFMPEG", fps=fps, macro_block_size=2, quality=8)
    with writer:
        for step in range(1, frames + 1):
            writer.append_data(draw(step))


# --- strips for a page -----------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Strip:
    """The frames of one panel, one below the other in one PNG.

    Attributes:
        title: truth, forecast or error; "truth and forecast" for lines, which share a picture.
        image: `data:image/png;base64,...`, frames x height pixels high.
        width, height: pixels of one frame.
        limits: values at the two ends of `colours`; `None` where the picture carries its own axes.
        colours: the colour map from low to high, as `#rrggbb`.
    """

    title: str
    image: str
    width: int
    height: int
    limits: tuple[float, float] | None = None
    colours: list[str] = dataclasses.field(default_factory=list)


def strips(row: Row, forecast: Trajectory) -> list[Strip]:
    """One strip a panel; of one-dimensional data plots, where truth and forecast share one."""
    if not row.is_lines:
        return [_image_strip(panel) for panel in row.panels]
    shared = [panel for panel in row.panels if panel.title != "error"]
    return [_line_strip(row, panels, forecast) for panels in (shared, row.panels[len(shared) :]) if panels]


def _image_strip(panel: Panel) -> Strip:
    low, high = panel.limits
    places = np.linspace(0, 1, COLOURS)
    rgb = np.rint(255 * colour_map(panel.colours)(places)[:, :3]).astype(int)
    hidden = [int(OBSTACLE_COLOUR[i : i + 2], 16) for i in (1, 3, 5)]
    with np.errstate(invalid="ignore"):
        levels = np.rint((panel.values - low) / (high - low) * (COLOURS - 1)).clip(0, COLOURS - 1)
    indices = np.where(np.isfinite(panel.values), levels, COLOURS).astype(np.uint8)
    pixels = indices.transpose(0, 2, 1)[:, ::-1]  # (T, n, m) -> (T, m, n): first axis right, second one up
    image = _png(pixels.reshape(-1, pixels.shape[2]), [*rgb.ravel().tolist(), *hidden])
    stops = ["#" + bytes(rgb[i].tolist()).hex() for i in np.linspace(0, COLOURS - 1, 17).round().astype(int)]
    return Strip(panel.title, image, pixels.shape[2], pixels.shape[1], (low, high), stops)


def _line_strip(row: Row, panels: list[Panel], forecast: Trajectory) -> Strip:
    from PIL import Image

    figure = new_figure(3.2, 4.8)
    axes = figure.subplots()
    shown = [(draw_line(axes, panel, forecast, 1), panel) for panel in panels]
    axes.set_xlabel(axis_label(forecast), fontsize=11)
    axes.set_ylabel(f"{row.error_label if panels[0].title == 'error' else row.label} [{row.unit}]", fontsize=10)
    if len(panels) > 1:
        figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=10)
    figure.canvas.draw()
    figure.set_layout_engine("none")  # laid out once: the room that labels need does not change
    frames = []
    for step in range(len(panels[0].values)):
        for artist, panel in shown:
            artist.set_ydata(panel.values[step])
        figure.canvas.draw()
        frames.append(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy())
    height, width, _ = frames[0].shape
    palette, colours = palette_of([row]), Image.new("P", (1, 1))
    colours.putpalette(palette)
    indices = np.asarray(_reduced(np.concatenate(frames), colours))
    return Strip(" and ".join(panel.title for panel in panels), _png(indices, palette), width, height)


def _png(indices: np.ndarray, palette: list[int]) -> str:
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(indices), mode="P")
    image.putpalette(palette)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
