"""A session's state on disk: whole or not at all, checked by a hash, never unpickled.

    "FOGTAIL1" | header length, tensors length (u64, little-endian) | header (MessagePack) | tensors (safetensors)
    | answers' payloads | SHA-256 of all that

One folder for each session holds the last two that its client may go back to, and the last that was made for restarts
of the host; besides these, what the client says that checkpoints of its own go on from. `through` is the operation
after which the state was taken.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import struct
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from google.protobuf.message import DecodeError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fogline.common.errors import CapacityError, FormatError
from fogline.common.files import replace_file
from fogline.common.rpc.gen import tensors_pb2 as pb
from fogline.common.wire.tensors import Buffer, Frame, TensorHeader

log = logging.getLogger(__name__)

MAGIC = b"FOGTAIL1"
KEEP = 2
MAX_HELD = 8  # a host further down holds three, and a fourth while it writes
MAX_HEADER = 16 << 20
_LENGTHS = struct.Struct("<QQ")
_DIGEST = 32


class SavedAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An answer that the client had not acknowledged; its payload stands behind the tensors."""

    seq: int
    body: bytes  # a pb.Answer
    tensors: tuple[TensorHeader, ...]


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is no tensor."""

    peer: str
    role: str
    mode: int
    setup: bytes
    through: int
    groups: tuple[dict[str, float], ...]  # hyper-parameters of the optimizer as they stand
    upstream: dict[str, Any] | None  # what the host further up goes on from
    answers: tuple[SavedAnswer, ...]


@dataclass(frozen=True)
class Checkpoint:
    """Header, tensors by name, and the answers."""

    header: Header
    tensors: dict[str, Tensor]
    answers: tuple[Frame, ...]


def saved_answers(frames: Sequence[Frame]) -> tuple[tuple[SavedAnswer, ...], list[Buffer]]:
    """Headers and payloads of answers."""
    made = []
    parts: list[Buffer] = []
    for frame in frames:
        body: Any = frame.body
        made.append(SavedAnswer(frame.seq, body.SerializeToString(), frame.tensors))
        parts += frame.parts
    return tuple(made), parts


class Checkpoints:
    """The checkpoints of every session of a host, in a folder."""

    def __init__(self, folder: Path, quota_bytes: int | None = None) -> None:
        self._folder, self._quota = folder, quota_bytes

    def write(
        self,
        session: bytes,
        header: Header,
        tensors: dict[str, Tensor],
        parts: Sequence[Buffer],
        *,
        keep: bool = True,
        hold: Collection[int] = (),
    ) -> None:
        """Make a state durable, then drop the session's older ones; `keep`: its client may go back to it.

        Those taken after the operations of `hold`, at most MAX_HELD, are not dropped. Raises CapacityError.
        """
        packed = msgspec.msgpack.encode(header)
        blob = save({name: t.detach().cpu().contiguous() for name, t in tensors.items()})
        pieces = [MAGIC, _LENGTHS.pack(len(packed), len(blob)), packed, blob, *parts]
        digest = hashlib.sha256()
        for piece in pieces:
            digest.update(piece)
        data = b"".join([*pieces, digest.digest()])
        count = KEEP + 1 + len(hold)
        if self._quota is not None and (held := self.held_bytes(but=session)) + count * len(data) > self._quota:
            raise CapacityError(
                f"checkpoints of other sessions take {held} bytes and this one needs {count} times {len(data)}, of "
                f"{self._quota}; close sessions, or raise tensors.checkpoint_bytes"
            )
        replace_file(self._of(session) / f"{header.through:020d}.{'kept' if keep else 'last'}", data)
        for kind, number in (("kept", KEEP), ("last", 0 if keep else 1)):
            found = sorted(self._of(session).glob(f"*.{kind}"))
            for old in found[: len(found) - number]:
                if not (old.stem.isdigit() and int(old.stem) in hold):
                    old.unlink(missing_ok=True)

    def read(self, session: bytes, through: int = 0) -> Checkpoint | None:
        """The checkpoint taken after operation `through`, or (0) the last; None: there is none.

        A damaged last one is passed over for the one before. Raises FormatError when `through` is damaged.
        """
        for step in [through] if through else reversed(self.steps(session)):
            try:
                path = self._path(session, step)
                if path is None:
                    return None
                return parse(path.read_bytes())
            except (FormatError, OSError) as error:
                if through:
                    raise FormatError(f"the checkpoint of operation {through} can't be used: {error}") from error
                log.warning("checkpoint passed over", extra={"session": session.hex(), "error_text": str(error)})
        return None

    def steps(self, session: bytes) -> list[int]:
        """Operations after which there are checkpoints, rising."""
        paths = (*self._of(session).glob("*.kept"), *self._of(session).glob("*.last"))
        return sorted(int(path.stem) for path in paths if path.stem.isdigit())

    def upstreams(self, session: bytes) -> dict[int, int]:
        """By the operation after which a checkpoint was taken: the one further up that it goes on from."""
        found: dict[int, int] = {}
        for step in self.steps(session):
            with suppress(FormatError, OSError):
                path = self._path(session, step)
                if path is not None and (token := read_header(path).upstream) is not None:
                    found[step] = int(token["seq"])
        return found

    def rewind(self, session: bytes, through: int) -> None:
        """Forget what comes after `through`: the client goes on from there in another way."""
        for step in self.steps(session):
            if step > through and (path := self._path(session, step)) is not None:
                path.unlink(missing_ok=True)

    def forget(self, session: bytes) -> None:
        """Remove all of a session."""
        shutil.rmtree(self._of(session), ignore_errors=True)

    def sweep(self, older_than_s: float) -> int:
        """Remove sessions that nobody has written to for so long; returns how many."""
        gone = 0
        for folder in self._sessions():
            with suppress(OSError):
                newest = max((p.stat().st_mtime for p in folder.iterdir()), default=folder.stat().st_mtime)
                if time.time() - newest > older_than_s:
                    shutil.rmtree(folder, ignore_errors=True)
                    gone += 1
        return gone

    def held_bytes(self, but: bytes = b"") -> int:
        """Bytes of all checkpoints, but those of one session."""
        total = 0
        for folder in self._sessions():
            if folder.name != but.hex():
                with suppress(OSError):
                    total += sum(path.stat().st_size for path in folder.iterdir())
        return total

    def _sessions(self) -> Iterator[Path]:
        if self._folder.is_dir():
            yield from (path for path in self._folder.iterdir() if path.is_dir())

    def _of(self, session: bytes) -> Path:
        return self._folder / session.hex()

    def _path(self, session: bytes, through: int) -> Path | None:
        paths = (self._of(session) / f"{through:020d}.{kind}" for kind in ("kept", "last"))
        return next((path for path in paths if path.exists()), None)


def read_header(path: Path) -> Header:
    """The header alone, which no hash has been held against. Raises FormatError, OSError."""
    with path.open("rb") as file:
        begin = file.read(len(MAGIC) + _LENGTHS.size)
        if len(begin) < len(MAGIC) + _LENGTHS.size or begin[: len(MAGIC)] != MAGIC:
            raise FormatError("not a checkpoint of a tensor session")
        size, _ = _LENGTHS.unpack_from(begin, len(MAGIC))
        if size > MAX_HEADER:
            raise FormatError("the checkpoint's lengths are wrong")
        try:
            return msgspec.msgpack.decode(file.read(size), type=Header)
        except msgspec.DecodeError as error:
            raise FormatError(f"the checkpoint is malformed: {str(error)[:300]}") from error


def parse(data: bytes) -> Checkpoint:
    """Read a checkpoint. Raises FormatError for anything that `Checkpoints.write` did not make."""
    begin = len(MAGIC) + _LENGTHS.size
    if len(data) < begin + _DIGEST or data[: len(MAGIC)] != MAGIC:
        raise FormatError("not a checkpoint of a tensor session")
    view = memoryview(data)
    if hashlib.sha256(view[:-_DIGEST]).digest() != view[-_DIGEST:]:
        raise FormatError("the checkpoint is damaged: its bytes do not match their hash")
    header_bytes, tensor_bytes = _LENGTHS.unpack_from(data, len(MAGIC))
    end = len(data) - _DIGEST
    if header_bytes > MAX_HEADER or begin + header_bytes + tensor_bytes > end:
        raise FormatError("the checkpoint's lengths are wrong")
    try:
        header = msgspec.msgpack.decode(view[begin : begin + header_bytes], type=Header)
        tensors = load(bytes(view[begin + header_bytes : begin + header_bytes + tensor_bytes]))
        answers, offset = [], begin + header_bytes + tensor_bytes
        for saved in header.answers:
            parts: list[Buffer] = []
            for tensor in saved.tensors:
                if not 0 <= tensor.coded_bytes <= end - offset:
                    raise FormatError("an answer of the checkpoint is cut short")
                parts.append(bytearray(view[offset : offset + tensor.coded_bytes]))
                offset += tensor.coded_bytes
            answers.append(Frame(saved.seq, pb.Answer.FromString(saved.body), saved.tensors, tuple(parts)))
    except (msgspec.DecodeError, SafetensorError, DecodeError, ValueError, KeyError) as error:
        raise FormatError(f"the checkpoint is malformed: {str(error)[:300]}") from error
    if offset != end:
        raise FormatError("the checkpoint has bytes that belong to nothing")
    return Checkpoint(header, tensors, tuple(answers))


def optimizer_state(optimizer: torch.optim.Optimizer, names: dict[int, str]) -> dict[str, Tensor]:
    """The tensors of an optimizer's state, by "parameter/key". `names` is by the id of the parameter."""
    return {
        f"{names[id(parameter)]}/{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if value is not None
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, named: dict[str, torch.nn.Parameter], tensors: dict[str, Tensor]
) -> None:
    """The other way. Raises FormatError for parameters that there are not."""
    for name, value in tensors.items():
        owner, _, key = name.rpartition("/")
        parameter = named.get(owner)
        if parameter is None:
            raise FormatError(f"the checkpoint has optimizer state of {owner!r}, which this part of the model lacks")
        if value.ndim and value.shape == parameter.shape:
            # In the memory layout of the parameter, as a run without a stop would have it.
            value = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
        optimizer.state[parameter][key] = value
