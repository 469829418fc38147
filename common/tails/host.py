"""A tail host: a process that serves the tensor plane on a port of its own, alone or as a child of a node.

As a child it is run as `python -m fogline.common.tails.host PARENT_PID` with its configuration (JSON) on stdin, so that
torch stays out of the node's own process, and what goes wrong in a kernel ends no node.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import sys
from typing import TYPE_CHECKING, Any

from fogline.common import logs, notify, pki, process
from fogline.common.files import DirectoryLock
from fogline.common.metrics import TailMetrics
from fogline.common.rpc.accounting import LinkMeter
from fogline.common.rpc.peer import Peer
from fogline.common.rpc.server import aio_server
from fogline.common.rpc.slots import Slots
from fogline.common.rpc.tensor_messages import BODIES
from fogline.common.rpc.tensor_service import READ_AHEAD, TensorService
from fogline.common.rpc.tensor_stream import add_service
from fogline.common.tails.config import TailHostConfig
from fogline.common.tails.supervisor import decode
from fogline.common.wire.tensors import Frame, Limits

if TYPE_CHECKING:
    from fogline.common.tails.factory import SessionFactory

log = logging.getLogger(__name__)

SWEEP_S = 600.0  # how often states that nobody asked for are looked for
STATE_S = 1.0
M_ARENA_MAX = -8
OUTCOMES = ("done", "failed")


async def serve(config: TailHostConfig) -> None:
    """Serve until SIGTERM or SIGINT. Raises ConfigError or IdentityError before it is ready."""
    me = _identity(config)
    stop = process.aio_stop_event()
    tensors = config.tensors
    metrics = TailMetrics()
    for kind in BODIES.values():  # so that a share of failures is 0, not nothing, before the first
        for outcome in OUTCOMES:
            metrics.tail_operations.labels(kind, outcome)
    state: dict[str, object] = {"ok": False, "sessions": 0}
    # Only now: torch takes seconds to import, which a wrong certificate should not cost.
    from fogline.common.tails.factory import SessionFactory

    _few_arenas(tensors.parallel)
    folder = tensors.checkpoint_dir or config.data_dir / "tensors"
    lock = DirectoryLock(folder, "tail host")
    slots = Slots(tensors.parallel)
    factory = SessionFactory(tensors, folder, me, config.tls, LinkMeter("fog-cloud", metrics.link_bytes), slots)
    limits = Limits(
        max_frame_bytes=tensors.max_frame_bytes, max_tensor_bytes=tensors.max_tensor_bytes, window=tensors.window
    )
    service = TensorService(
        factory,
        limits,
        slots=slots,
        max_sessions=tensors.max_sessions,
        max_sessions_per_peer=tensors.max_sessions_per_peer,
        max_kept_bytes=tensors.max_kept_bytes,
        ttl_s=tensors.session_ttl_s,
        stall_s=tensors.stall_s,
        observe=lambda frame, answer: _observe(metrics, frame, answer),
    )
    web, metrics_port = metrics.serve(tensors.metrics, lambda: state, data_dir=folder, tls=config.tls)
    try:
        server, port = await aio_server(
            tensors.listen,
            config.tls,
            LinkMeter("edge-fog" if me.role == "fog" else "cloud", metrics.link_bytes),
            [(add_service, service)],
            read_ahead=READ_AHEAD,
        )
        await server.set_ready(True)
        state["ok"] = True
        process.announce_ready(port=port, metrics_port=metrics_port)
        log.info(
            "serving tails",
            extra={
                "port": port,
                "metrics_port": metrics_port,
                "models": list(tensors.models),
                "device": str(factory.device),
                "folder": str(folder),
            },
        )
        watch = asyncio.create_task(_watch(service, metrics, state, factory, tensors.checkpoint_keep_s))
        await stop.wait()
        log.info("stopping")
        state["ok"] = False
        watch.cancel()
        await server.stop(grace_s=0.2)  # sessions never end by themselves
        await service.close()
    finally:
        web.close()
        lock.close()


def _few_arenas(count: int) -> None:
    """Every session has a thread; without this each of them keeps what its largest operation took (glibc only)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(M_ARENA_MAX, count)


async def _watch(
    service: TensorService, metrics: TailMetrics, state: dict[str, object], factory: SessionFactory, keep_s: float
) -> None:
    swept = float("-inf")
    loop, watchdog = asyncio.get_running_loop(), notify.Watchdog()
    while True:
        watchdog.beat(f"{service.sessions} sessions")
        if loop.time() - swept > SWEEP_S:
            swept = loop.time()
            if gone := await asyncio.to_thread(factory.sweep, keep_s):
                log.info("old sessions removed", extra={"sessions": gone})
        state["sessions"] = service.sessions
        metrics.tail_sessions.set(service.sessions)
        metrics.tail_kept_bytes.set(service.kept_bytes)
        await asyncio.sleep(STATE_S)


def _observe(metrics: TailMetrics, frame: Frame, answer: Frame) -> None:
    body: Any = answer.body
    kind = BODIES.get(type(frame.body), "other")
    metrics.tail_operations.labels(kind, OUTCOMES[body.HasField("failure")]).inc()
    metrics.tail_compute_seconds.inc(body.compute_us / 1e6)
    metrics.tail_queued_seconds.inc(body.queued_us / 1e6)
    for direction, tensors in (("received", frame.tensors), ("sent", answer.tensors)):
        for tensor in tensors:
            role = tensor.role.name.lower()
            metrics.tail_tensor_bytes.labels(direction, role).inc(tensor.coded_bytes)
            metrics.tail_raw_bytes.labels(direction, role).inc(tensor.raw_bytes)


def _identity(config: TailHostConfig) -> Peer:
    if config.tls.insecure:
        return Peer(config.name, config.role)
    found = pki.own_identity(config.tls.files()[1], config.role)
    return Peer(found.name, found.role, found.tenant)


def main(argv: list[str]) -> int:
    """Run as a child."""
    process.die_with_parent(int(argv[1]))
    return process.run_main(_child)


def _child() -> None:
    config = decode(sys.stdin.buffer.read())
    logs.setup(config.log, "tail-host")
    asyncio.run(serve(config))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
