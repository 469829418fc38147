"""Runs the main job on a local cluster to its end, and says what was counted on the way."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from fogline.common.errors import InternalError, UnavailableError
from fogline.deploy.local.cluster import Cluster
from fogline.deploy.local.logtail import last_lines
from fogline.deploy.local.progress import EdgeProgress, FogProgress, Progress, Watch, who_is_stuck

_POLL_S = 0.25
_LAST_SCRAPE_S = 5.0


@dataclass
class Track:
    """What one training edge reported on the way: its metric by step."""

    steps: list[int] = field(default_factory=list)
    metric: list[float] = field(default_factory=list)

    def note(self, step: int, value: float | None) -> None:
        """Take a report; a value that did not change is the same evaluation."""
        if value is None or value != value or (self.metric and value == self.metric[-1]):
            return
        if not self.steps or step > self.steps[-1]:
            self.steps.append(step)
            self.metric.append(value)


def run(
    cluster: Cluster, show: Callable[[Progress], None], *, stall_s: float | None = None
) -> tuple[Progress, dict[str, Track]]:
    """Poll until nothing is missing.

    Raises UnavailableError when nothing moves any more; it names who is stuck and shows the ends of their logs.
    """
    watch = Watch(stall_s)
    tracks: dict[str, Track] = {}
    while True:
        cluster.poll()
        progress = progress_of(cluster)
        _note(tracks, progress)
        show(progress)
        if not progress.missing:
            _settle(cluster)
            progress = progress_of(cluster)
            _note(tracks, progress)
            return progress, tracks
        quiet = watch.stalled_for(progress, time.monotonic())
        if quiet is not None:
            raise UnavailableError(_stalled(cluster, progress, quiet))
        time.sleep(_POLL_S)


def _note(tracks: dict[str, Track], progress: Progress) -> None:
    for edge in progress.edges:
        if edge.to_train:
            tracks.setdefault(edge.name, Track()).note(edge.step, edge.iou)


def _settle(cluster: Cluster) -> None:
    """Read every process's counters once more, so that the last bytes and CPU seconds count."""
    deadline = time.monotonic() + _LAST_SCRAPE_S
    while time.monotonic() < deadline:
        cluster.poll()
        if all(child.ready is not None for child in cluster.supervisor.children.values()):
            return
        time.sleep(_POLL_S)
    raise InternalError("a process died at the very end of the job and did not come back; see the logs")


def _stalled(cluster: Cluster, progress: Progress, quiet: float) -> str:
    logs = "\n".join(
        f"{name}, the end of {cluster.supervisor.children[name].spec.log}:\n"
        f"{last_lines(cluster.supervisor.children[name].spec.log)}"
        for name in progress.missing
    )
    return f"nothing has moved for {quiet:.0f} s:\n{who_is_stuck(progress.missing)}\n{logs}"


def progress_of(cluster: Cluster) -> Progress:
    """Where the job stands by the newest counters."""
    fog = cluster.counters["fog"]
    images = len(cluster.plan.images)
    children = cluster.supervisor.children
    edges = []
    for number, edge in enumerate(cluster.plan.edges):
        counted = cluster.counters[edge.name]
        step = _whole(counted.last("fogline_train_step"))
        waiting = counted.last("fogline_outbox_images")
        edges.append(
            EdgeProgress(
                name=edge.name,
                running=children[edge.name].ready is not None,
                to_capture=len(edge.content_ids),
                captured=min(len(edge.content_ids), _whole(counted.last("fogline_captured_images_total"))),
                capture_done=counted.last("fogline_capture_done") == 1 and waiting is not None,
                waiting=_whole(waiting),
                to_hold=len(cluster.plan.expected(edge.name)),
                held=_whole(counted.last("fogline_library_records")),
                to_train=cluster.settings.train_steps if number < cluster.trainers else 0,
                step=step,
                loss=counted.last("fogline_train_loss") if step else None,
                iou=counted.last("fogline_train_iou") if step else None,
                sent=_link(cluster, edge.name, "sent"),
                received=_link(cluster, edge.name, "received"),
            )
        )
    return Progress(
        FogProgress(
            running=children["fog"].ready is not None,
            images=images,
            stored=_whole(fog.last("fogline_stored_images")),
            published=_whole(fog.last("fogline_published_head")),
        ),
        tuple(edges),
    )


def _whole(value: float | None) -> int:
    return 0 if value is None or value != value else round(value)


def _link(cluster: Cluster, name: str, direction: str) -> float:
    return cluster.counters[name].total("fogline_link_bytes_total", direction=direction)
