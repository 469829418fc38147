"""One edge agent: its parts, wired together; health, gauges, start and end."""

from __future__ import annotations

import logging
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import fogline
from fogline.common import notify, pki, process
from fogline.common.authority.keeper import Keeper, ensure
from fogline.common.errors import ConfigError, FoglineError, IdentityError
from fogline.common.files import DirectoryLock
from fogline.common.images.record import ImageRecord
from fogline.common.instance import instance
from fogline.common.metrics import EdgeMetrics, count_record
from fogline.common.reload import Reload
from fogline.common.rpc.accounting import LinkMeter
from fogline.common.rpc.peer import Peer
from fogline.edge_agent import trainer as training
from fogline.edge_agent.capture import Capture
from fogline.edge_agent.clock import FogClock
from fogline.edge_agent.cloud import CloudLink
from fogline.edge_agent.config import DISCOVER, EdgeConfig, FilterConfig
from fogline.edge_agent.fog import FogLink
from fogline.edge_agent.library import Library
from fogline.edge_agent.model_store import ModelStore
from fogline.edge_agent.models import ModelExchange
from fogline.edge_agent.outbox import Outbox
from fogline.edge_agent.receive import Receiver
from fogline.edge_agent.trainer import Progress, TrainerProcess
from fogline.edge_agent.upload import Uploader
from fogline.edge_agent.workers import Stop, Supervisor

_log = logging.getLogger(__name__)
_FIRST_CONTACT_S = 5.0
_STOP_S = 3.0  # for every task to end; then the process ends without them


def serve(config: EdgeConfig, reload: Reload[EdgeConfig] | None = None, clock: FogClock | None = None) -> int:
    """Run until SIGTERM or SIGINT. Raises ConfigError and IdentityError for what only the operator can mend."""
    ensure(config.tls)
    me = identity(config)
    trains = training.wanted(config.train)
    stopped = process.stop_event()
    lock = DirectoryLock(config.data_dir, "agent")
    try:
        me = replace(me, instance=instance(config.data_dir))
        agent = Agent(config, me, clock or FogClock(), trains=trains)
        try:
            if reload is not None:
                reload.on("filter", lambda new: agent.want(new.filter))
                reload.listen()
            agent.start(stopped)
            process.announce_ready(metrics_port=agent.metrics_port)
            watchdog = notify.Watchdog()
            watchdog.beat(agent.summary)
            while not stopped.wait(1.0):
                if reload is not None:
                    reload.poll()
                agent.refresh()
                if agent.works():
                    watchdog.beat(agent.summary)
        finally:
            stuck = agent.close()
    finally:
        lock.close()
    if stuck:
        _log.warning("stopped without waiting for: %s", ", ".join(stuck))
        logging.shutdown()
        os._exit(0)  # a thread inside gRPC at interpreter exit can hang it
    return 0


def identity(config: EdgeConfig) -> Peer:
    """Who we are, by our certificate where there is one."""
    if config.tls.insecure:
        return Peer(config.name, "edge")
    cert = config.tls.files()[1]
    found = pki.own_identity(cert, "edge")
    if found.name != config.name:
        raise IdentityError(
            f"{cert} is a certificate of {found.name!r}, and this agent is {config.name!r}; set name, or enrol it",
            number=703,
        )
    return Peer(found.name, found.role, found.tenant)


class Agent:
    """The parts of a running agent."""

    def __init__(self, config: EdgeConfig, me: Peer, clock: FogClock, *, trains: bool) -> None:
        self._config, self._clock = config, clock
        self._stop = Stop()
        self._supervisor = Supervisor(self._stop)
        self._metrics = EdgeMetrics()
        self._told: dict[str, int] = {}  # counters that go on over restarts, as they were told last
        self._received_at = time.monotonic()
        self._received_cursor = -1
        self._refreshing = threading.Lock()
        self._stuck: dict[str, float] = {}
        self._meters: list[LinkMeter] = []
        root, tls = config.data_dir, config.tls
        self._outbox = Outbox(root / "outbox", config.outbox.max_bytes, config.outbox.policy)
        self._library = Library(root / "library", config.library.max_bytes)
        self._capture = Capture(config.capture, self._outbox, clock, self._stop, config.log)
        self._cloud: CloudLink | None = None
        self._models: ModelExchange | None = None
        if config.cloud:
            meter = LinkMeter("edge-cloud", self._metrics.link_bytes)
            self._meters.append(meter)
            self._cloud = CloudLink(
                config.cloud, tls, me, meter, self._stop,
                version=fogline.__version__, capabilities=_capabilities(config, trains), state_dir=root,
            )  # fmt: skip
            store = ModelStore(root / "models")
            store.sweep()
            outgoing = training.outgoing(root)
            self._models = ModelExchange(self._cloud, store, config.train.model, outgoing, self._stop)
        meter = LinkMeter("edge-fog", self._metrics.link_bytes)
        self._meters.append(meter)
        self._fog = FogLink(self._fogs, tls, me, meter, clock, self._stop)
        spent = self._metrics.transcode_seconds.inc
        self._uploader = Uploader(self._fog, self._outbox, clock, self._stop, config.uplink, spent)
        self._receiver = Receiver(self._fog, self._library, clock, config.filter, self._stop, self._on_new)
        self._trainer = TrainerProcess(config, self._stop, self.quiet, self._on_progress) if trains else None
        self._metrics.outbox_max_bytes.set(config.outbox.max_bytes)
        self._metrics.library_max_bytes.set(config.library.max_bytes)
        self._web, self.metrics_port = self._metrics.serve(config.metrics, self.health, data_dir=root, tls=tls)
        self._keeper = Keeper(tls, on_renewed=self._reconnect) if tls.authority and not tls.insecure else None

    def start(self, stopped: threading.Event) -> None:
        """Start every task. Raises IdentityError or ConfigError when the fog node and we can't ever get on."""
        self.refresh()
        if self._keeper is not None:
            self._keeper.start()
        if self._config.capture.source != "none":
            self._supervisor.add("capture", self._capture.run)
        self._first_contact(stopped)
        self._supervisor.add("upload", self._uploader.run)
        self._supervisor.add("receive", self._receiver.run)
        if self._cloud is not None and self._models is not None:
            cloud, models = self._cloud, self._models
            beat = lambda: cloud.heartbeats(self.gauges, models.versions, models.offer)  # noqa: E731
            self._supervisor.add("heartbeat", beat)
            self._supervisor.add("models", models.run)
        if self._trainer is not None:
            self._supervisor.add("train", self._trainer.run)

    def _first_contact(self, stopped: threading.Event) -> None:
        """Try the fog node once: what waiting would not mend ends the start. Later it is retried, and health tells."""
        outcome: list[FoglineError] = []

        def attempt() -> None:
            try:
                self._fog.session()
            except FoglineError as error:
                outcome.append(error)

        thread = threading.Thread(target=attempt, name="first-contact", daemon=True)
        thread.start()
        deadline = time.monotonic() + _FIRST_CONTACT_S
        while thread.is_alive() and time.monotonic() < deadline and not stopped.wait(0.02):
            pass
        if outcome and isinstance(outcome[0], IdentityError) and self._keeper is not None:
            # Perhaps the authority was changed while we were off: ask whom to trust now, and try once more.
            self._keeper.refresh()
            outcome.clear()
            attempt()
        if outcome and isinstance(outcome[0], (IdentityError, ConfigError)):
            raise outcome[0]
        if self._fog.error:
            _log.warning("starting without a fog node; capture goes on, uploads follow when it is there")

    def want(self, wanted: FilterConfig) -> None:
        """Receive by another filter from now on; what the old one left out stays out."""
        self._receiver.want(wanted)
        # Not here: who connects holds the link's lock for as long as that takes, and this thread answers the watchdog.
        threading.Thread(target=self._fog.reconnect, name="reconnect", daemon=True).start()

    def close(self) -> list[str]:
        """Stop every task; the names of those that did not end in time."""
        self._stop.set()
        if self._keeper is not None:
            self._keeper.close()
        self._fog.close()
        stuck = self._supervisor.join(_STOP_S)
        if self._cloud is not None:
            self._cloud.close()
        self._web.close()
        if not stuck:
            self._outbox.close()
            self._library.close()
        return stuck

    def quiet(self) -> bool:
        """Nothing more is captured, everything is uploaded, and nothing came for a while."""
        head, cursor = self._receiver.state.head, self._library.cursor
        if cursor != self._received_cursor:
            self._received_cursor, self._received_at = cursor, time.monotonic()
        waited = time.monotonic() - self._received_at > self._config.train.quiet_s
        return self._capture.done and not self._outbox.count and cursor >= head and waited and not self._fog.error

    def gauges(self) -> dict[str, float]:
        """For the fleet's status."""
        progress = self._trainer.state.progress if self._trainer else Progress()
        gauges = {
            "outbox_images": float(self._outbox.count),
            "library_records": float(self._library.count),
            "library_bytes": float(self._library.bytes),
            "train_step": float(progress.step),
        }
        if progress.loss is not None:
            gauges["train_loss"] = progress.loss
        if self._trainer and self._trainer.state.score is not None:
            gauges["train_score"] = self._trainer.state.score
        for meter in self._meters:
            gauges |= meter.gauges()
        return gauges

    def refresh(self) -> None:
        """Bring the metrics up to date. Counters go on over restarts: they come from the outbox's own books."""
        with self._refreshing:
            metrics = self._metrics
            for name, value in self._outbox.totals().items():
                counter = metrics.captured_images if name == "captured" else metrics.uploaded_images.labels(name)
                counter.inc(self._new(name, value))
            for name, value in self._outbox.total_bytes().items():
                counter = metrics.captured_bytes if name == "captured" else metrics.uploaded_bytes.labels(name)
                counter.inc(self._new(f"{name} bytes", value))
            # Looked at first and told last: whoever reads "done" finds nothing in the outbox that came before.
            done = self._capture.done
            metrics.outbox_images.set(self._outbox.count)
            metrics.outbox_bytes.set(self._outbox.bytes)
            metrics.capture_done.set(done)
            metrics.capture_waiting.set(self._capture.waiting)
            metrics.camera_delivers.set(not self._capture.trouble)
            metrics.missed_frames.inc(self._new("missed", self._capture.missed))
            metrics.connected.labels("edge-fog").set(not self._fog.error)
            if self._cloud is not None:
                metrics.connected.labels("edge-cloud").set(not self._cloud.error)
            metrics.clock_offset.set(self._clock.offset_us / 1e6)
            metrics.library_records.set(self._library.count)
            metrics.library_bytes.set(self._library.bytes)
            cursor = self._library.cursor
            metrics.cursor.set(cursor)
            metrics.behind_records.set(max(0, self._receiver.state.head - cursor))

    def _new(self, name: str, value: int) -> int:
        """By how much a total has grown since it was last told."""
        new = value - self._told.get(name, 0)
        self._told[name] = value
        return new

    def works(self) -> bool:
        """Whether no task hangs. One that does holds what others need: the service manager is to start us again."""
        stuck = self._supervisor.stuck()
        for name in stuck.keys() - self._stuck.keys():
            _log.error("%s hangs: it has neither worked nor waited for %.0f s; please report it", name, stuck[name])
        self._stuck = stuck
        return not stuck

    @property
    def summary(self) -> str:
        """How we do, in a line."""
        return f"no fog node: {self._fog.error}" if self._fog.error else "connected to the fog node"

    def health(self) -> dict[str, object]:
        """What `/healthz` answers. `ok`: connected, with room, and every task running."""
        self.refresh()
        receiving, totals = self._receiver.state, self._outbox.totals()
        tasks = {
            w.name: w.error or "failing" for w in self._supervisor.workers if not w.alive and w.failures and w.error
        }
        troubles = {
            "camera": self._capture.trouble,
            "fog": self._fog.error,
            "identity": "" if self._cloud is None else self._cloud.notice,
            "fog_full": self._uploader.full,
            "disk": receiving.full,
            "train": self._trainer.state.trouble if self._trainer else "",
            **{f"task_{name}": text for name, text in tasks.items()},
            **{f"task_{name}": f"hangs for {seconds:.0f} s" for name, seconds in self._stuck.items()},
        }
        return {
            "ok": not any(troubles.values()),
            "troubles": {name: text for name, text in troubles.items() if text},
            "cloud": "none" if self._cloud is None else self._cloud.error or "connected",
            "certificate": "not renewed here" if self._keeper is None else self._keeper.trouble or "kept fresh",
            "clock_offset_us": self._clock.offset_us,
            "capture": {"done": self._capture.done, "waiting": self._capture.waiting, "refused": self._capture.refused},
            "uplink": self._uploader.form.text,
            "outbox": {"images": self._outbox.count, "bytes": self._outbox.bytes, **totals},
            "library": {
                "records": self._library.count,
                "bytes": self._library.bytes,
                "cursor": self._library.cursor,
                "head": receiving.head,
                "evicted": self._library.evicted(),
                "given_up": len(self._library.given_up()),
                "gone": receiving.gone,
            },
            "train": self._training(),
        }

    def _training(self) -> dict[str, object]:
        if self._trainer is None:
            return {"state": "off"}
        state = self._trainer.state
        return {
            "state": state.state,
            "step": state.progress.step,
            "loss": state.progress.loss,
            "score": state.score,
            "pool": state.progress.pool,
            "damaged": state.progress.damaged,
            "seconds": state.progress.seconds,
            "restarts": state.restarts,
        }

    def _reconnect(self) -> None:
        self._fog.reconnect()
        if self._cloud is not None:
            self._cloud.reconnect()

    def _fogs(self) -> list[str]:
        if self._config.fog != DISCOVER or self._cloud is None:
            return [self._config.fog]
        return self._cloud.fogs()

    def _on_new(self, record: ImageRecord, size: int, delay_s: float) -> None:
        self._metrics.received_images.inc()
        layers = [(int(layer.kind), layer.codec, len(layer.payload)) for layer in record.layers]
        count_record(self._metrics.received_bytes, layers, size)
        # A clock that was set between two greetings may make it negative.
        self._metrics.delay.observe(max(0.0, delay_s))

    def _on_progress(self, progress: Progress) -> None:
        self._metrics.train_step.set(progress.step)
        if progress.loss is not None:
            self._metrics.train_loss.set(progress.loss)
        if progress.score is not None:
            self._metrics.train_iou.set(progress.score)
        if progress.published and self._models is not None:
            self._models.published()


def _capabilities(config: EdgeConfig, trains: bool) -> dict[str, str]:
    return {
        "cores": str(os.cpu_count() or 1),
        "machine": os.uname().machine,
        "torch": "yes" if trains else "no",
        "capture": config.capture.source,
        "board": _board(),
    }


def _board() -> str:
    try:
        return Path("/proc/device-tree/model").read_text().strip("\0 \n")[:64]
    except OSError:
        return ""
