"""Upload: from the outbox to the fog node, several images in flight, resumed where a connection broke."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

from fogline.common import trace
from fogline.common.errors import FoglineError, FormatError, ProtocolError, UnavailableError
from fogline.common.images.forms import Form
from fogline.common.rpc.gen import images_pb2 as pb
from fogline.common.rpc.gen import transfer_pb2
from fogline.common.rpc.retry import Backoff
from fogline.common.rpc.status import translate
from fogline.common.wire.transfer import CHUNK_BYTES, Piece
from fogline.common.wire.upload import (
    WINDOW_IMAGES,
    Drop,
    MarkStored,
    Offer,
    Reason,
    RetryLater,
    SendChunk,
    SendOffer,
    UploadSender,
)
from fogline.edge_agent.clock import FogClock
from fogline.edge_agent.config import UplinkConfig
from fogline.edge_agent.fog import FogLink, FogSession
from fogline.edge_agent.outbox import Item, Outbox
from fogline.edge_agent.uplink import Transcoder, Upload
from fogline.edge_agent.workers import Stop

_log = logging.getLogger(__name__)
STALL_S = 120.0  # without any answer while images are in flight: the fog node hangs, though its host answers pings
_REASONS = frozenset(reason.value for reason in Reason)


class Uploader:
    """The upload task. `full` is why the fog node takes nothing now, else empty."""

    def __init__(
        self,
        link: FogLink,
        outbox: Outbox,
        clock: FogClock,
        stop: Stop,
        uplink: UplinkConfig | None = None,
        spent: Callable[[float], object] = lambda seconds: None,
    ) -> None:
        """`spent` is told the CPU seconds that an image's uplink form took."""
        self._link, self._outbox, self._clock, self._stop = link, outbox, clock, stop
        self._uplink, self._spent = uplink or UplinkConfig(), spent
        self.full = ""
        self.form = Form.ORIGINAL  # that images are sent in, while connected

    def run(self) -> None:
        """Until the order to stop."""
        while not self._stop:
            session: FogSession | None = None
            try:
                session = self._link.session()
                transcoder = Transcoder(self._uplink, session.limits, self._spent)
                self.form = transcoder.form
                trace.new_trace()
                _Stream(self, session, transcoder, self._link, self._outbox, self._clock, self._stop).run()
            except FoglineError as error:
                self._link.failed(session, error)


class _Stream:
    """One Upload call. gRPC writes from a thread of its own; the machine is shared under the outbox's lock."""

    def __init__(
        self,
        owner: Uploader,
        session: FogSession,
        transcoder: Transcoder,
        link: FogLink,
        outbox: Outbox,
        clock: FogClock,
        stop: Stop,
    ) -> None:
        self._owner, self._session, self._transcoder, self._link = owner, session, transcoder, link
        self._outbox, self._clock, self._stop = outbox, clock, stop
        self._machine = UploadSender(chunk_bytes=min(CHUNK_BYTES, session.limits.max_chunk_bytes))
        self._uploads: dict[bytes, Upload] = {}  # in flight
        self._made: dict[bytes, Upload] = {}  # given back for want of room there, to be offered again
        self._as_captured: set[bytes] = set()  # whose form came damaged again and again
        self._next: Upload | None = None  # taken from the outbox; the window has no room for it yet
        self._data: tuple[bytes, bytes] = (b"", b"")  # the image that is being sent: content id, JPEG
        self._no_space = Backoff(1.0, 30.0)
        self._pause_until = 0.0
        self._progress = time.monotonic()
        self._ended = False
        self._failure: FoglineError | None = None
        self._call: Any = None

    def run(self) -> None:
        """Until the stream ends. Raises an error of the tree."""
        try:
            with translate(self._session.address):
                self._call = self._session.images.Upload(self._requests())
                with self._stop.calling(self._call.cancel):
                    for response in self._call:
                        self._answer(response)
            raise UnavailableError(f"{self._session.address} ended the upload")
        except FoglineError as error:
            raise self._failure or error from error
        finally:
            with self._outbox.changed:
                self._ended = True
                self._outbox.release()
                self._outbox.changed.notify_all()
            if self._call is not None:
                self._call.cancel()

    def _requests(self) -> Iterator[pb.UploadRequest]:
        while True:
            message: pb.UploadRequest | None = None
            raw: Item | None = None
            with self._outbox.changed:
                while not (self._ended or self._stop):
                    try:
                        raw = self._fill_window()
                        message = self._pull()
                    except FoglineError as error:
                        self._abort(error)
                        return
                    if message is not None or raw is not None:
                        break
                    self._check_progress()
                    self._outbox.changed.wait(1.0)
                if self._ended or self._stop:
                    return
            if message is not None:
                yield message
            if raw is not None:
                try:
                    self._make(raw)
                except FoglineError as error:
                    with self._outbox.changed:
                        self._abort(error)
                    return

    def _pull(self) -> pb.UploadRequest | None:
        """The next message, if there is one now."""
        while (step := self._machine.pull()) is not None:
            upload = self._uploads[step.content_id]
            if isinstance(step, SendOffer):
                return pb.UploadRequest(offer=self._offer(upload))
            data = self._load(upload.item) if upload.data is None else upload.data
            if data is not None:
                return _chunk(step, data)
            return None
        return None

    def _fill_window(self) -> Item | None:
        """Offer what there is room for; an image that must be made into its form first is returned instead."""
        while time.monotonic() >= self._pause_until:
            if self._next is None:
                if not self._machine.room(0):
                    return None
                taken = self._outbox.take(1)
                if not taken:
                    return None
                (item,) = taken
                self._next = self._made.pop(item.content_id, None)
                if self._next is None and self._wants_form(item):
                    return item
                self._next = self._next or Upload.original(item)
            if not self._machine.room(self._next.size):
                return None
            if not self._uploads:
                self._progress = time.monotonic()
            content_id = self._next.item.content_id
            self._uploads[content_id] = self._next
            self._machine.offer(Offer(content_id, self._next.size))
            self._next = None
        return None

    def _wants_form(self, item: Item) -> bool:
        return self._transcoder.form is not Form.ORIGINAL and item.content_id not in self._as_captured

    def _make(self, item: Item) -> None:
        """The image's form, without the lock: capture and answers must not wait for it."""
        jpeg = self._load(item)
        if jpeg is not None:
            made = self._transcoder.make(item, jpeg)
            with self._outbox.changed:
                self._next = made

    def _offer(self, upload: Upload) -> pb.ImageOffer:
        item, coded = upload.item, upload.form is not Form.ORIGINAL
        return pb.ImageOffer(
            content_id=item.content_id,
            size=upload.size,
            camera=item.camera,
            capture_time_us=self._clock.fog_us(item.captured),
            boxes=[pb.BoundingBox(x=b.x, y=b.y, width=b.w, height=b.h, label=b.label) for b in item.boxes],
            form=pb.UplinkForm.ValueType(upload.form.value if coded else 0),  # as before there were others
            digest=upload.digest,
        )

    def _load(self, item: Item) -> bytes | None:
        if self._data[0] != item.content_id:
            try:
                self._data = (item.content_id, self._outbox.read(item.content_id))
            except FormatError as error:
                # What the disk has damaged can't be sent by anyone; the stream starts afresh without it.
                _log.error("an image is lost: %s", error)
                self._outbox.reject(item.content_id, str(error), self._clock.wall_us())
                with self._outbox.changed:
                    self._abort(UnavailableError("the upload starts again after a damaged image"))
                return None
        return self._data[1]

    def _check_progress(self) -> None:
        if self._uploads and time.monotonic() - self._progress > STALL_S:
            self._abort(UnavailableError(f"{self._session.address} gave no answer for {STALL_S:.0f} s"))

    def _abort(self, failure: FoglineError) -> None:
        """End the stream from the writing side."""
        self._failure = failure
        self._ended = True
        if self._call is not None:
            self._call.cancel()

    def _answer(self, response: pb.UploadResponse) -> None:
        with self._outbox.changed:
            self._progress = time.monotonic()
            kind = response.WhichOneof("message")
            if kind == "accepted":
                self._machine.accepted(response.accepted.content_id, response.accepted.offset)
            elif kind == "stored":
                self._finish(self._machine.stored(response.stored.content_id, response.stored.duplicate))
            elif kind == "rejected":
                self._rejected(response.rejected)
            else:
                raise ProtocolError(
                    f"{self._session.address} sent an upload answer of an unknown kind; update the agent"
                )
            self._outbox.changed.notify_all()

    def _rejected(self, rejected: pb.UploadRejected) -> None:
        if rejected.reason not in _REASONS:
            raise ProtocolError(f"{self._session.address} rejects for the reason {rejected.reason}; update the agent")
        reason = Reason(rejected.reason)
        outcome = self._machine.rejected(rejected.content_id, reason, rejected.detail[:1024])
        form = self._uploads[rejected.content_id].form
        if isinstance(outcome, Drop) and form is not Form.ORIGINAL:
            if reason is Reason.CORRUPT:  # the JPEG on our disk may be whole
                self._as_captured.add(outcome.content_id)
                self._give_back(outcome.content_id)
                return
            if rejected.form or not rejected.HasField("form"):  # a fog node of before does not say
                self._made.clear()
                self._give_back(outcome.content_id)
                self._transcoder.refused(outcome.detail)
                self._owner.form = Form.ORIGINAL
                return
        self._finish(outcome)

    def _give_back(self, content_id: bytes) -> Upload:
        self._outbox.release([content_id])
        return self._uploads.pop(content_id)

    def _finish(self, outcome: object) -> None:
        if isinstance(outcome, MarkStored):
            self._uploads.pop(outcome.content_id, None)
            self._outbox.stored(outcome.content_id, duplicate=outcome.duplicate)
            self._no_space.reset()
            self._owner.full = ""
            self._link.progressed()
        elif isinstance(outcome, Drop):
            item = self._uploads.pop(outcome.content_id).item
            _log.warning("the fog node refused an image of %s: %s", item.camera, outcome.detail)
            self._outbox.reject(outcome.content_id, outcome.detail, self._clock.wall_us())
        elif isinstance(outcome, RetryLater):
            upload = self._give_back(outcome.content_id)
            self._made[outcome.content_id] = upload
            if len(self._made) > WINDOW_IMAGES:  # the outbox may drop what it took back
                del self._made[next(iter(self._made))]
            self._pause_until = time.monotonic() + self._no_space.delay_s()
            if not self._owner.full:
                _log.warning("the fog node has no room: %s; trying again", outcome.detail)
            self._owner.full = outcome.detail or "no room"


def _chunk(step: SendChunk, data: bytes) -> pb.UploadRequest:
    piece = Piece.of(step.offset, data[step.offset : step.offset + step.length])
    chunk = transfer_pb2.Chunk(offset=piece.offset, data=piece.data, crc32=piece.crc32)
    return pb.UploadRequest(chunk=pb.UploadChunk(content_id=step.content_id, chunk=chunk))
