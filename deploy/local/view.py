"""Shows the job's progress: a live table on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from fogline.deploy.local.progress import EdgeProgress, Progress

_PLAIN_EVERY_S = 5.0


class View:
    """A context manager; `show` may be called as often as one likes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        self._started = time.monotonic()
        self._last = float("-inf")

    def __enter__(self) -> View:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, progress: Progress) -> None:
        """Draw. A plain view prints a line every few seconds."""
        elapsed = time.monotonic() - self._started
        if self._live is not None:
            self._live.update(_table(progress, elapsed))
        elif elapsed - self._last >= max(_PLAIN_EVERY_S, elapsed / 20):  # long jobs fill no screens
            self._last = elapsed
            self._console.print(_line(progress, elapsed), highlight=False, soft_wrap=True)

    def finish(self, progress: Progress) -> None:
        """Leave the last state standing, after the live view was cleared."""
        elapsed = time.monotonic() - self._started
        if self._live is not None:
            self._console.print(_table(progress, elapsed))
        else:
            self._console.print(_line(progress, elapsed), highlight=False, soft_wrap=True)


def human_bytes(count: float) -> str:
    """Bytes for people: 3 significant digits, decimal units."""
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def human_seconds(value: float) -> str:
    """Seconds for people: two significant digits, whole ones from ten up."""
    return f"{value:.0f} s" if value >= 9.95 else f"{value:.2g} s"


def _of(done: int, total: int) -> str:
    return f"{done}/{total}"


def _training(edge: EdgeProgress) -> tuple[str, str, str]:
    if not edge.to_train:
        return "no", "", ""
    loss = "" if edge.loss is None else f"{edge.loss:.3f}"
    iou = "" if edge.iou is None else f"{edge.iou:.3f}"
    return _of(edge.step, edge.to_train), loss, iou


def _table(progress: Progress, elapsed: float) -> Table:
    table = Table(title=f"fogline up · {elapsed:.0f} s", title_justify="left", expand=False)
    table.add_column("device")
    for heading in ("captured", "waiting", "received", "train steps", "loss", "IoU", "sent", "received bytes"):
        table.add_column(heading, justify="right")
    for edge in progress.edges:
        table.add_row(
            edge.name if edge.running else f"[red]{edge.name} (restarting)",
            _of(edge.captured, edge.to_capture),
            str(edge.waiting),
            _of(edge.held, edge.to_hold),
            *_training(edge),
            human_bytes(edge.sent),
            human_bytes(edge.received),
            style="green" if edge.missing is None else None,
        )
    fog = progress.fog
    who = "fog node" if fog.running else "[red]fog node (restarting)[/]"
    table.caption = f"{who}: {_of(fog.stored, fog.images)} images stored, {fog.published} encoded and published"
    table.caption_justify = "left"
    return table


def _line(progress: Progress, elapsed: float) -> str:
    fog, edges = progress.fog, progress.edges
    parts = [
        f"{elapsed:4.0f} s",
        f"up {fog.stored}/{fog.images}",
        f"encoded {fog.published}/{fog.images}",
        f"down {sum(e.held for e in edges)}/{sum(e.to_hold for e in edges)}",
    ]
    training = [e for e in edges if e.to_train]
    if training:
        steps = f"steps {sum(e.step for e in training)}/{sum(e.to_train for e in training)}"
        loss = [e.loss for e in training if e.loss is not None]
        iou = [e.iou for e in training if e.iou is not None]
        parts.append(
            steps
            + (f" loss {sum(loss) / len(loss):.3f}" if loss else "")
            + (f" IoU {sum(iou) / len(iou):.3f}" if iou else "")
        )
    parts.append(
        f"{human_bytes(sum(e.sent for e in edges))} sent, {human_bytes(sum(e.received for e in edges))} received"
    )
    down = [e.name for e in edges if not e.running] + ([] if fog.running else ["fog"])
    if down:
        parts.append(f"restarting: {', '.join(down)}")
    return " · ".join(parts)
