"""Rate against quality, as a picture: a row for each folder, and one for the detector."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fogline.common.errors import ConfigError
from fogline.common.models.compare import SOURCE
from fogline.compare.results import Results, Training
from fogline.compare.run import Point, fronts
from fogline.drawing import INK, MUTED, check_matplotlib, drawing, write

FORMATS = (".png", ".svg", ".pdf")
_PALETTE = ("#2f6fdb", "#d1495b", "#16a394", "#e0a030", "#8a63d2", MUTED, "#7a9a01", "#b3589a")


def check(path: Path) -> None:
    """Say before the work that a plot can't be made. Raises ConfigError."""
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"--plot {path}: its ending is {path.suffix or 'missing'}; give {', '.join(FORMATS)}")
    check_matplotlib("--plot")


def save(results: Results, path: Path) -> None:
    """Draw and write. Raises ConfigError where the file can't be written."""
    from matplotlib.lines import Line2D

    codecs = list(dict.fromkeys(point.codec for point in results.points))
    colours = {codec: _PALETTE[index % len(_PALETTE)] for index, codec in enumerate(codecs)}
    rows = len(results.folders) + (results.training is not None)
    with drawing((10, 0.5 + 3.3 * rows), rows, 2) as (figure, panels):
        for (left, right), folder in zip(panels, results.folders, strict=False):
            points = results.points_of(folder.name)
            _objects(left, points, colours, results.object_db)
            _backgrounds(right, points, colours, results.object_db)
            left.set_title(f"{folder.name}: objects (pale: beaten by the same codec)", loc="left", fontsize=10)
            right.set_title(
                f"{folder.name}: background, with objects of {results.object_db:g} dB or more", loc="left", fontsize=10
            )
        if results.training:
            whole = panels[-1][0].get_gridspec()[-1, :]
            for panel in panels[-1]:
                panel.remove()
            _detectors(figure.add_subplot(whole), results.training, colours)
        handles = [
            Line2D([], [], color=colour, marker="o", markersize=4, label=codec) for codec, colour in colours.items()
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=min(6, len(codecs)), frameon=False)
        write(figure, path, "--plot")


def _objects(axes: Any, points: Sequence[Point], colours: dict[str, str], object_db: float) -> None:
    """Every setting as a dot, and the best that each codec does."""
    for codec, colour in colours.items():
        found = sorted(
            (p.measured.delivered_bytes, p.measured.object_db)
            for p in points
            if p.codec == codec and p.measured is not None and p.measured.object_db is not None
        )
        best: list[tuple[float, float]] = []
        for size, db in found:
            if not best or db > best[-1][1]:
                best.append((size, db))
        axes.plot([size for size, _ in found], [db for _, db in found], "o", color=colour, markersize=3, alpha=0.35)
        axes.plot([size for size, _ in best], [db for _, db in best], "-o", color=colour, markersize=4, linewidth=1.6)
    axes.axhline(object_db, color=MUTED, linestyle="--", linewidth=1)
    axes.annotate(f"{object_db:g} dB", (0.995, object_db), xycoords=("axes fraction", "data"), ha="right", va="bottom")
    axes.set_ylabel("PSNR inside boxes, dB")
    _bytes_axis(axes)


def _backgrounds(axes: Any, points: Sequence[Point], colours: dict[str, str], object_db: float) -> None:
    missing = []
    for codec, front in fronts(points, object_db).items():
        if not front.places:
            missing.append(f"{codec}: {front.gap}")
        sizes, levels = [p.bytes for p in front.places], [p.background_db for p in front.places]
        axes.plot(sizes, levels, "-o", color=colours[codec], markersize=4, linewidth=1.6)
    if missing:
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
        note = "\n".join(missing)
        axes.text(0.99, 0.02, note, transform=axes.transAxes, ha="right", fontsize=8, color=MUTED, bbox=box)
    axes.set_ylabel("PSNR outside boxes, dB")
    _bytes_axis(axes)


def _detectors(axes: Any, training: Training, colours: dict[str, str]) -> None:
    """Each detector against the one of the same seed that was trained on source; bars are the seeds' scatter."""
    metric = {"iou": "IoU", "ap50": "AP50"}[training.comparison.metric]
    for codec in dict.fromkeys(one.codec for one in training.learned):
        found = sorted((one.bytes, one.differences) for one in training.learned if one.codec == codec)
        sizes, means = [size for size, _ in found], [statistics.fmean(values) for _, values in found]
        axes.plot(sizes, means, "-", color=colours[codec], linewidth=1, alpha=0.35)
        axes.plot(sizes, means, "o", color=colours[codec], markersize=5)
        lows, highs = [min(values) for _, values in found], [max(values) for _, values in found]
        axes.vlines(sizes, lows, highs, color=colours[codec], linewidth=1.6, alpha=0.6)
    axes.axhline(0, color=INK, linestyle="--", linewidth=1)
    seeds = len(training.comparison.scores(SOURCE))
    title = (
        f"all folders: a detector trained on decoded images against one trained on source ({training.on_source:.3f})"
    )
    axes.set_title(f"{title}; bars: from the worst to the best of {seeds} seeds", loc="left", fontsize=10)
    axes.set_ylabel(f"{metric} on held-out frames, minus source")
    _bytes_axis(axes)


def _bytes_axis(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xlabel("bytes an image, shared state included (better to the left)")
    if not any(len(line.get_xdata()) for line in axes.get_lines() if line.get_marker() == "o"):
        axes.text(0.5, 0.5, "no such pixels", transform=axes.transAxes, ha="center", color=MUTED)
        return
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
