"""One side of a transfer as a process that a benchmark commands by lines of JSON, and what it says of itself.

Without third-party imports, so that a side may run in another environment (`tensor_peers`).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

TICK_S = 0.002


class Ticker:
    """The worst delay of a timer on an event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.worst_s = 0.0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin anew; called from another thread."""
        self.worst_s = 0.0
        asyncio.run_coroutine_threadsafe(self._begin(), self._loop).result()

    async def _begin(self) -> None:
        self._task = asyncio.create_task(self._tick())

    async def _tick(self) -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(TICK_S)
            self.worst_s = max(self.worst_s, time.perf_counter() - before - TICK_S)

    def stop(self) -> float:
        """Seconds, since `start`."""
        assert self._task is not None
        self._loop.call_soon_threadsafe(self._task.cancel)
        return self.worst_s


def new_loop() -> asyncio.AbstractEventLoop:
    """An event loop that runs in a thread of its own."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop


def memory(field: str) -> int:
    """`VmRSS` or `VmHWM` of this process, bytes."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def cpu_s() -> float:
    """CPU seconds of this process and of the daemons that it started."""
    total = time.process_time()
    for children in Path("/proc/self/task").glob("*/children"):
        for child in children.read_text().split():
            threads = Path(f"/proc/{child}/task").glob("*/schedstat")
            total += sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9
    return total


class Received:
    """What arrived last: its SHA-256 where it was asked for. Whole tensors are not kept."""

    def __init__(self) -> None:
        self.check = False
        self.digest = ""
        self.count = 0

    def __call__(self, data: Any) -> None:
        """Take a tensor as a buffer of bytes."""
        self.count += 1
        if self.check:
            self.digest = hashlib.sha256(data).hexdigest()


def receive(address: str, received: Received, loop: asyncio.AbstractEventLoop) -> None:
    """The receiver's commands, until its input ends."""
    ticker = Ticker(loop)
    state: dict[str, float] = {"rss": memory("VmRSS")}

    def begin(check: bool, warm: bool) -> dict[str, Any]:
        received.check, received.digest, received.count = check, "", 0
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins again from what is resident now
        if warm:  # what is kept from one tensor for the next counts as extra memory, too
            state["rss"] = memory("VmRSS")
        ticker.start()
        state.update(cpu=cpu_s())
        return {}

    def end() -> dict[str, Any]:
        return {
            "cpu_s": cpu_s() - state["cpu"],
            "extra_bytes": memory("VmHWM") - state["rss"],
            "stall_s": ticker.stop(),
            "digest": received.digest,
            "count": received.count,
        }

    serve({"address": address}, {"begin": begin, "end": end})


def send(do: Callable[[int], object], **others: Callable[..., dict[str, Any]]) -> None:
    """The sender's commands: `send` sends `size` bytes, until the receiver has said that it has everything."""

    def once(size: int) -> dict[str, Any]:
        cpu, began = cpu_s(), time.perf_counter()
        do(size)
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "cpu_s": cpu_s() - cpu}

    serve({}, {"send": once, **others})


def serve(hello: dict[str, Any], commands: dict[str, Callable[..., dict[str, Any]]]) -> None:
    """Answer commands on standard input, line by line; whatever else prints goes to standard error."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps(hello), file=out, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(commands[asked.pop("do")](**asked)), file=out, flush=True)


class Side:
    """A side's process, seen by the benchmark."""

    def __init__(self, command: Sequence[str], env: dict[str, str] | None = None) -> None:
        self._command = " ".join(command)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **(env or {})}
        )
        self.hello = self._read()

    def __call__(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Command it; returns its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._command} ended with {self._process.wait()}; its errors are above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()
