"""What every process of the product does the same way: announce its ports, end on signals, die with its parent."""

from __future__ import annotations

import asyncio
import ctypes
import json
import logging
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

import psutil

from fogline.common import logs, notify
from fogline.common.errors import FoglineError, InternalError

PR_SET_PDEATHSIG = 1
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def die_with_parent(parent_pid: int | None = None) -> None:
    """Have the kernel kill this process when the thread that started it ends, however that happens.

    Call it first thing in a child; pass the parent's pid when it is known, to close the race with a parent that is
    already gone. The kernel watches the *thread* that started us: start children from a thread that stays.
    The service manager hears of a child by its parent alone.
    """
    notify.forget()
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        raise InternalError(f"prctl(PR_SET_PDEATHSIG) failed: {os.strerror(ctypes.get_errno())}")
    if parent_pid is not None and os.getppid() != parent_pid:
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Usage:
    """What this process has used; `cpu_seconds` is of all its children too, ended or running."""

    cpu_seconds: float
    resident_bytes: int
    children_resident_bytes: int
    open_files: int


def usage() -> Usage:
    """Return what this process and its children use now. Looks through the host's processes once."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime
    this, children = psutil.Process(), 0
    for child in this.children(recursive=True):
        try:
            times, memory = child.cpu_times(), child.memory_info()
        except psutil.Error:  # it ended meanwhile
            continue
        children += memory.rss
        total += times.user + times.system
        # A grandchild that ended is in its own parent's "children" times only.
        total += getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
    return Usage(float(total), this.memory_info().rss, children, this.num_fds())


def cpu_seconds() -> float:
    """Return the CPU seconds (user and system) of this process and all its children, ended or running."""
    return usage().cpu_seconds


def announce_ready(*, metrics_port: int, port: int | None = None, tensors_port: int | None = None) -> None:
    """Print `ready {json}` on stdout, which tells a launcher that we serve, and on which ports; tell systemd as well.

    `port` is gRPC's, of processes that have one; `metrics_port` is -1 where metrics are off; `tensors_port` is that
    of a tail host beside the node.
    """
    ports = {"metrics_port": metrics_port} | ({"port": port} if port is not None else {})
    ports |= {"tensors_port": tensors_port} if tensors_port is not None else {}
    notify.notify(READY=1)  # first: whoever reads the line may stop us at once, and that is told at once
    sys.stdout.write(f"ready {json.dumps(ports)}\n")
    sys.stdout.flush()


def stop_event() -> threading.Event:
    """Return an event that SIGTERM or SIGINT sets. Call it from the main thread; a second signal ends at once."""
    event = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        if event.is_set():
            os._exit(130)
        notify.notify(STOPPING=1, STATUS="stopping")
        event.set()

    for number in STOP_SIGNALS:
        signal.signal(number, on_signal)
    return event


def aio_stop_event() -> asyncio.Event:
    """Return an event of the running loop that SIGTERM or SIGINT sets; a second signal ends at once."""
    event = asyncio.Event()

    def on_signal() -> None:
        if event.is_set():
            os._exit(130)
        notify.notify(STOPPING=1, STATUS="stopping")
        event.set()

    for number in STOP_SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    return event


def run_main(body: Callable[[], int | None]) -> int:
    """Run a process's body and return its exit code: 0, that of the error tree, 130 on Ctrl-C, or 9 for a bug.

    Errors go to stderr: as a log record where logging is set up, else as one plain line.
    """
    try:
        return body() or 0
    except FoglineError as error:
        _report(f"{type(error).__name__}: {error}", None)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001 - the root of the process
        _report(f"unexpected {type(error).__name__}: {error}", error)
        return InternalError.exit_code


def _report(text: str, bug: BaseException | None) -> None:
    if logs.is_set_up():
        logging.getLogger("fogline").critical(text, exc_info=bug)
        return
    if bug is not None:
        sys.excepthook(type(bug), bug, bug.__traceback__)
    sys.stderr.write(f"{text}\n")
