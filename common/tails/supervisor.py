"""The tail host as a node sees it: a child that is started again when it dies. Imports no torch."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from fogline.common import addresses
from fogline.common.errors import ConfigError, UnavailableError
from fogline.common.rpc.retry import Backoff
from fogline.common.tails.config import TailHostConfig

log = logging.getLogger(__name__)

READY_S = 120.0  # torch takes long to import on a small board
STOP_S = 10.0


def encode(config: TailHostConfig) -> bytes:
    """A configuration as the child reads it."""
    return msgspec.json.encode(config, enc_hook=str)


def decode(data: bytes) -> TailHostConfig:
    """The other way."""

    def path(kind: type, value: object) -> object:
        if kind is Path and isinstance(value, str):
            return Path(value)
        raise ValueError(f"expected a path, got {value!r}")

    return msgspec.json.decode(data, type=TailHostConfig, dec_hook=path)


def check(config: TailHostConfig) -> None:
    """Refuse at once what the child would refuse after importing torch. Raises ConfigError."""
    if importlib.util.find_spec("torch") is None:
        raise ConfigError("tensors.enabled needs torch; install fogline[torch] or switch it off")
    addresses.parse(config.tensors.listen, allow_any_port=True)
    if config.tensors.upstream is not None:
        addresses.parse(config.tensors.upstream)


class TailHostProcess:
    """Keeps one child running. `port` is where it serves, the same after a restart."""

    def __init__(self, config: TailHostConfig, ready: Callable[[int], None] | None = None) -> None:
        self._config, self._ready = config, ready
        self._process: asyncio.subprocess.Process | None = None
        self.port = 0
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        """Of the child that runs now."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def start(self) -> None:
        """Start the first child and wait until it serves. Raises ConfigError where it can't."""
        check(self._config)
        await self._start()

    @property
    def state(self) -> str:
        """For health: running or down."""
        return "running" if self.pid is not None else "down"

    async def run(self, stop: asyncio.Event) -> None:
        """Start another whenever it dies, until `stop`; ends the child then, and when cancelled."""
        backoff = Backoff(base_s=0.2, cap_s=30.0)
        stopped = asyncio.ensure_future(stop.wait())
        try:
            while not stop.is_set():
                assert self._process is not None
                died = asyncio.ensure_future(self._process.wait())
                await asyncio.wait({stopped, died}, return_when=asyncio.FIRST_COMPLETED)
                if stop.is_set():
                    return
                log.error("the tail host died", extra={"code": died.result(), "restarts": self.restarts})
                self.restarts += 1
                if await backoff.wait_async(stop):
                    return
                try:
                    await self._start()
                    backoff.reset()
                except (ConfigError, UnavailableError) as error:
                    log.error("the tail host can't be started again", extra={"error_text": str(error)})
        finally:
            stopped.cancel()
            await self.close()

    async def close(self) -> None:
        """End the child: first by asking. Idempotent."""
        child = self._process
        if child is None:
            return
        for stop in (child.terminate, child.kill):
            if child.returncode is not None:
                break
            with contextlib.suppress(ProcessLookupError):
                stop()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(child.wait(), STOP_S)

    async def _start(self) -> None:
        config = self._config
        if self.port:  # clients come back to where they were
            listen = addresses.parse(config.tensors.listen, allow_any_port=True)
            tensors = msgspec.structs.replace(config.tensors, listen=str(addresses.Address(listen.host, self.port)))
            config = msgspec.structs.replace(config, tensors=tensors)
        self._process = child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "fogline.common.tails.host",
            str(os.getpid()),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(encode(config))
            child.stdin.close()
            self.port = await asyncio.wait_for(_read_ready(child.stdout), READY_S)
        except BaseException as error:
            await self.close()
            if isinstance(error, (asyncio.TimeoutError, ConnectionError, asyncio.IncompleteReadError)):
                code = child.returncode
                kind = ConfigError if code == ConfigError.exit_code else UnavailableError
                raise kind(f"the tail host did not start (exit code {code}); its log above says why") from error
            raise
        if self._ready is not None:
            self._ready(self.port)


async def _read_ready(stream: asyncio.StreamReader) -> int:
    while line := await stream.readline():
        word, _, rest = line.decode(errors="replace").partition(" ")
        if word == "ready":
            return int(json.loads(rest)["port"])
    raise ConnectionError("it ended before it was ready")
