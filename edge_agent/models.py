"""Detector weights: new versions from the cloud's registry, and ours to it. Both resume where they broke."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fogline.common.errors import (
    CapacityError,
    FoglineError,
    FormatError,
    InputError,
    ProtocolError,
    UnavailableError,
)
from fogline.common.rpc.gen import control_pb2 as pb
from fogline.common.rpc.gen import transfer_pb2
from fogline.common.rpc.status import translate
from fogline.common.wire.transfer import Piece, Receiver, cut
from fogline.edge_agent.cloud import CloudLink, CloudSession
from fogline.edge_agent.model_store import Held, ModelStore
from fogline.edge_agent.workers import Stop

_log = logging.getLogger(__name__)
MAX_MODEL_BYTES = 256 << 20
_FULL_PAUSE_S = 30.0


class ModelExchange:
    """The task that fetches newer versions and publishes what the trainer leaves in the outgoing folder."""

    def __init__(self, link: CloudLink, store: ModelStore, name: str, outgoing: Path, stop: Stop) -> None:
        self._link, self._store, self._name, self._outgoing, self._stop = link, store, name, outgoing, stop
        self._wanted: dict[str, pb.ModelVersion] = {}
        self._changed = threading.Condition()

    def versions(self) -> dict[str, int]:
        """What a heartbeat asks about: the trainer's model, also when none is held."""
        return {self._name: 0, **self._store.versions()}

    def offer(self, newer: list[pb.ModelVersion]) -> None:
        """The cloud has newer versions."""
        with self._changed:
            self._wanted.update({version.name: version for version in newer if version.name == self._name})
            self._changed.notify_all()

    def published(self) -> None:
        """The trainer has left something in the outgoing folder."""
        with self._changed:
            self._changed.notify_all()

    def run(self) -> None:
        """Until the order to stop."""
        while not self._stop:
            session: CloudSession | None = None
            try:
                if path := self._oldest():
                    session = self._link.session()
                    self._publish(session, path)
                elif self._wanted:
                    session = self._link.session()
                    self._fetch(session, next(iter(self._wanted.values())))
                else:
                    with self._changed:
                        self._changed.wait(1.0)
            except CapacityError as error:  # there or here; the connection is well, and heartbeats use it
                _log.warning("models wait: %s", error)
                self._stop.wait(_FULL_PAUSE_S)
            except FoglineError as error:
                self._link.failed(session, error)

    def _oldest(self) -> Path | None:
        # Only the newest is worth sending; the names carry the step with leading zeros.
        waiting = sorted(self._outgoing.glob("*.safetensors"))
        for stale in waiting[:-1]:
            stale.unlink(missing_ok=True)
        return waiting[-1] if waiting else None

    def _publish(self, session: CloudSession, path: Path) -> None:
        data = path.read_bytes()
        digest = self._store.blobs.put(data)
        answers: list[pb.PublishModelResponse] = []
        answered = threading.Condition()
        ended = False

        def requests() -> Iterator[pb.PublishModelRequest]:
            yield pb.PublishModelRequest(offer=pb.ModelOffer(name=self._name, digest=digest, size=len(data)))
            with answered:
                answered.wait_for(lambda: answers or ended)
                if not answers or answers[0].WhichOneof("message") != "accepted":
                    return
            for piece in cut(data, min(answers[0].accepted.offset, len(data))):
                chunk = transfer_pb2.Chunk(offset=piece.offset, data=piece.data, crc32=piece.crc32)
                yield pb.PublishModelRequest(chunk=chunk)

        stored: pb.ModelVersion | None = None
        try:
            with translate(self._link.address):
                call: Any = session.models.PublishModel(requests())
                with self._stop.calling(call.cancel):
                    for answer in call:
                        with answered:
                            answers.append(answer)
                            answered.notify_all()
                        if answer.WhichOneof("message") == "stored":
                            stored = answer.stored
                            break
                call.cancel()
        except InputError as error:
            # The registry will never take this file; the next one may be fine.
            _log.error("the cloud server refuses our model: %s", error)
            path.unlink(missing_ok=True)
            if not self._store.holds(digest):
                self._store.blobs.delete(digest)
            return
        finally:
            with answered:
                ended = True
                answered.notify_all()
        if stored is None:
            raise UnavailableError(f"{self._link.address} ended the publication of {path.name}")
        if stored.digest != digest:
            raise ProtocolError(f"{self._link.address} confirms another model than the one we published")
        self._store.enter(self._name, Held(stored.version, digest.hex(), stored.device))
        path.unlink(missing_ok=True)
        self._link.progressed()
        _log.info("published a model", extra={"model": self._name, "version": stored.version, "bytes": len(data)})

    def _fetch(self, session: CloudSession, version: pb.ModelVersion) -> None:
        blobs, digest = self._store.blobs, version.digest
        if len(digest) != 32 or not 1 <= version.size <= MAX_MODEL_BYTES:
            self._done(version)
            raise ProtocolError(f"model {version.name} of {version.size} bytes: 1 to {MAX_MODEL_BYTES} are allowed")
        if not blobs.has(digest):
            held = blobs.partial_offset(digest)
            if held > version.size:
                blobs.drop_partial(digest)
                held = 0
            receiver = Receiver(version.size, max_size=MAX_MODEL_BYTES, offset=held)
            try:
                with translate(self._link.address):
                    call = session.models.FetchModel(pb.FetchModelRequest(digest=digest, offset=held), timeout=None)
                    with self._stop.calling(call.cancel):
                        for response in call:
                            piece = Piece(response.chunk.offset, response.chunk.data, response.chunk.crc32)
                            receiver.accept(piece)
                            blobs.append(digest, piece.offset, piece.data, version.size)
            except (InputError, FormatError) as error:
                # A newer one has replaced it meanwhile; the next heartbeat tells.
                _log.info("model %s version %d is gone: %s", version.name, version.version, error)
                self._done(version)
                return
            if not receiver.complete:
                raise UnavailableError(f"{self._link.address} ended model {version.name} at byte {receiver.offset}")
            blobs.commit(digest)
        self._store.enter(version.name, Held(version.version, digest.hex(), version.device))
        self._done(version)
        self._link.progressed()
        _log.info("received a model", extra={"model": version.name, "version": version.version, "from": version.device})

    def _done(self, version: pb.ModelVersion) -> None:
        with self._changed:
            if self._wanted.get(version.name) == version:
                del self._wanted[version.name]
