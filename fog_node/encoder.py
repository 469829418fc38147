"""The encoder's child process as the fog node sees it."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from fogline.common.config import LogConfig
from fogline.common.errors import ConfigError, InternalError, ProtocolError
from fogline.common.images.planning import Situation
from fogline.fog_node import encode_messages as messages
from fogline.fog_node.config import TORCH_CODECS, EncoderConfig, Limits
from fogline.fog_node.encoders import build_encoder
from fogline.fog_node.encoders.latent_params import latent_params
from fogline.fog_node.encoders.nerv_params import nerv_params
from fogline.fog_node.encoders.siren_params import siren_params

# A child that computes takes far more; one that hangs (in a driver, a lock, a network file system) takes nothing.
STALL_S = 120.0
STALL_CPU_S = 0.5
_TORCH_PARAMS = {"siren": siren_params, "latent": latent_params, "nerv": nerv_params}


def check(config: EncoderConfig) -> None:
    """Refuse at once what the child would refuse only after importing torch. Raises ConfigError."""
    if config.codec in TORCH_CODECS:
        if importlib.util.find_spec("torch") is None:
            raise ConfigError(f"codec {config.codec} needs torch; install fogline[torch] or choose jpeg2")
        _TORCH_PARAMS[config.codec](config.params)
    else:
        build_encoder(config.codec, config.params)


@dataclass(frozen=True)
class BatchFailed(Exception):
    """A batch came to nothing; `died` tells whether the child went with it."""

    reason: str
    died: bool


class EncoderProcess:
    """One child that encodes one batch at a time. After `BatchFailed` with `died`, start another."""

    def __init__(self, process: asyncio.subprocess.Process, device: str) -> None:
        self._process = process
        self.device = device
        self.ended = asyncio.ensure_future(process.wait())

    @property
    def pid(self) -> int:
        """Of the child."""
        return self._process.pid

    @classmethod
    async def start(cls, config: EncoderConfig, limits: Limits, log: LogConfig) -> EncoderProcess:
        """Start a child and wait until its encoder is built.

        Raises ConfigError when the encoder refuses its configuration, BatchFailed when the child dies before.
        """
        environment = dict(os.environ)
        if config.threads:
            environment["OMP_NUM_THREADS"] = environment["MKL_NUM_THREADS"] = str(config.threads)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "fogline.fog_node.encode_worker",
            str(os.getpid()),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment,
        )
        child = cls(process, config.device)
        try:
            answer = await child._ask(
                messages.Start(
                    config.codec,
                    config.params,
                    config.device,
                    log.level,
                    log.format,
                    limits.max_image_bytes,
                    limits.max_image_pixels,
                )
            )
        except BaseException:
            await child.close()
            raise
        if isinstance(answer, messages.Ready):
            child.device = answer.device
            return child
        await child.close()
        if isinstance(answer, messages.Refused):
            raise ConfigError(answer.reason)
        raise InternalError(f"the encoder began with {type(answer).__name__}")

    async def encode(self, items: Sequence[messages.WorkItem], situation: Situation | None = None) -> messages.Encoded:
        """Encode a batch. Raises BatchFailed."""
        answer = await self._ask(messages.Encode(list(items), situation))
        if isinstance(answer, messages.Encoded):
            if [r.content_id for r in answer.results] == [i.content_id for i in items]:
                return answer
            raise BatchFailed("the encoder answered for other images than it was given", died=False)
        if isinstance(answer, messages.Failed):
            raise BatchFailed(answer.reason, died=False)
        raise BatchFailed(f"the encoder answered with {type(answer).__name__}", died=False)

    async def close(self) -> None:
        """End the child at once: what it was doing is still in the queue. Idempotent."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        # Without this the pipes' transports outlive the loop and complain.
        if self._process.stdin is not None:
            self._process.stdin.close()
        await self.ended

    async def _ask(self, message: messages.ToChild) -> messages.FromChild:
        exchange = asyncio.ensure_future(self._exchange(message))
        try:
            while not exchange.done():
                spent = self._cpu_seconds()
                await asyncio.wait({exchange}, timeout=STALL_S)
                if not exchange.done() and self._cpu_seconds() - spent < STALL_CPU_S:
                    await self.close()
                    raise BatchFailed(f"the encoder did nothing for {STALL_S:.0f} s and was killed", died=True)
            return await exchange
        except (asyncio.IncompleteReadError, ConnectionError):
            code = await self.ended
            raise BatchFailed(f"the encoder process ended with {_say(code)}", died=True) from None
        except ProtocolError as error:
            await self.close()
            raise BatchFailed(str(error), died=True) from error
        finally:
            exchange.cancel()
            exchange.add_done_callback(_seen)

    async def _exchange(self, message: messages.ToChild) -> messages.FromChild:
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise InternalError("the encoder has no pipes")
        stdin.write(messages.pack(message))
        await stdin.drain()
        size = messages.frame_size(await stdout.readexactly(messages.HEADER.size))
        return messages.unpack_from_child(await stdout.readexactly(size))

    def _cpu_seconds(self) -> float:
        with contextlib.suppress(psutil.Error):
            times = psutil.Process(self._process.pid).cpu_times()
            return float(times.user + times.system)
        return 0.0


def _say(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _seen(exchange: asyncio.Future[messages.FromChild]) -> None:
    """Keep asyncio from complaining of what broke an exchange that was given up."""
    if not exchange.cancelled():
        exchange.exception()
