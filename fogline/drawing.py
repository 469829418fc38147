"""What every picture of ours looks like, and how it is begun and written. matplotlib is imported when it is needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fogline.common.errors import ConfigError

INK, MUTED, GRID = "#1d2733", "#5d6b7a", "#e3e8ee"
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
}


def check_matplotlib(option: str) -> None:
    """Say before the work that there can be no picture. Raises ConfigError."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"{option} needs matplotlib ({error}); pip install 'fogline[compare]'") from error


@contextmanager
def drawing(
    size: tuple[float, float], rows: int = 1, columns: int = 1, style: Any = STYLE, **how: Any
) -> Iterator[tuple[Any, Any]]:
    """A figure of this size in inches, and its panels by row and column, while our style is set."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, figure.subplots(rows, columns, squeeze=False, **how)


def write(figure: Any, path: Path, option: str) -> None:
    """Write in the format of the path's ending. Raises ConfigError where it can't be written."""
    try:
        figure.savefig(path, dpi=130)
    except OSError as error:
        raise ConfigError(f"{path} can't be written: {error.strerror}; choose another {option}") from error
