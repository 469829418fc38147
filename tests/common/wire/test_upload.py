"""Upload: whatever breaks, in whatever order, nothing is lost and nothing is acknowledged before it is durable."""

from __future__ import annotations

import hashlib
from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fogline.common.errors import ProtocolError
from fogline.common.wire import upload
from fogline.common.wire.transfer import Piece
from fogline.common.wire.upload import Offer, Reason, UploadReceiver, UploadSender

CHUNK = 10
IMAGES = [bytes([i]) * (1 + 7 * i) for i in range(12)]
BY_ID = {hashlib.sha256(image).digest(): image for image in IMAGES}
TOO_LARGE = 60


class Upload(RuleBasedStateMachine):
    """An edge and a fog node with durable state, a stream between them that may break, and ends that may be killed."""

    def __init__(self) -> None:
        super().__init__()
        self.outbox: dict[bytes, bytes] = dict(BY_ID)  # durable
        self.dropped: set[bytes] = set()
        self.store: dict[bytes, bytes] = {}  # durable
        self.partials: dict[bytes, bytes] = {}  # durable
        self.full = False
        self.connect()

    def connect(self) -> None:
        self.sender = UploadSender(max_images=4, max_bytes=150, chunk_bytes=CHUNK)
        self.receiver = UploadReceiver(max_image_bytes=TOO_LARGE, max_chunk_bytes=CHUNK)
        self.up: deque[object] = deque()
        self.down: deque[object] = deque()
        self.lookups: list[bytes] = []

    @rule(pick=st.integers(0, 11))
    def offer(self, pick: int) -> None:
        content_id = list(BY_ID)[pick]
        if content_id in self.outbox and self.sender.room(len(BY_ID[content_id])):
            self.sender.offer(Offer(content_id, len(BY_ID[content_id])))

    @rule()
    def write(self) -> None:
        message = self.sender.pull()
        if isinstance(message, upload.SendOffer):
            self.up.append(message.content_id)
        elif message is not None:
            data = self.outbox[message.content_id][message.offset : message.offset + message.length]
            self.up.append((message.content_id, Piece.of(message.offset, data)))

    @precondition(lambda self: self.up)
    @rule()
    def receive(self) -> None:
        message = self.up.popleft()
        if isinstance(message, bytes):
            rejected = self.receiver.offer(message, len(BY_ID[message]))
            if rejected is None:
                self.lookups.append(message)
            else:
                self.down.append(rejected)
            return
        content_id, piece = message
        step = self.receiver.chunk(content_id, piece)
        if step is None:
            return
        if self.full:
            self.down.append(self.receiver.reject(content_id, Reason.NO_SPACE, "full"))
            return
        self.partials[content_id] = self.partials.get(content_id, b"") + piece.data
        if step.last:
            self.verify(content_id)

    @precondition(lambda self: self.lookups)
    @rule(pick=st.integers(0, 100))
    def look_up(self, pick: int) -> None:
        content_id = self.lookups.pop(pick % len(self.lookups))
        if content_id in self.store:
            self.down.append(self.receiver.duplicate(content_id))
        elif self.full:
            self.down.append(self.receiver.reject(content_id, Reason.NO_SPACE, "full"))
        else:
            answer = self.receiver.accept(content_id, len(self.partials.get(content_id, b"")))
            if answer.restart:
                del self.partials[content_id]
            self.down.append(answer)
            if answer.complete:
                self.verify(content_id)

    def verify(self, content_id: bytes) -> None:
        blob = self.partials.pop(content_id)
        if hashlib.sha256(blob).digest() == content_id:
            self.store[content_id] = blob
            self.down.append(self.receiver.stored(content_id))
        else:
            self.down.append(self.receiver.reject(content_id, Reason.CORRUPT, "damaged"))

    @precondition(lambda self: self.down)
    @rule()
    def answer(self) -> None:
        message = self.down.popleft()
        if isinstance(message, upload.Accept):
            self.sender.accepted(message.content_id, message.offset)
            return
        if isinstance(message, upload.MarkStored):
            step = self.sender.stored(message.content_id, message.duplicate)
        else:
            step = self.sender.rejected(message.content_id, message.reason, message.detail)
        if isinstance(step, upload.MarkStored):
            del self.outbox[step.content_id]
        elif isinstance(step, upload.Drop):
            self.dropped.add(step.content_id)
            del self.outbox[step.content_id]

    @rule()
    def break_stream_or_kill_either_end(self) -> None:
        self.connect()

    @rule(full=st.booleans())
    def disk(self, full: bool) -> None:
        self.full = full

    @precondition(lambda self: self.partials)
    @rule(cut=st.booleans())
    def damage_what_is_held_in_part(self, cut: bool) -> None:
        content_id = next(iter(self.partials))
        if content_id not in self.receiver.unfinished:
            blob = self.partials[content_id]
            self.partials[content_id] = blob[:-1] if cut else b"?" * len(blob) + b"?" * 100

    @invariant()
    def nothing_is_lost(self) -> None:
        for content_id, image in BY_ID.items():
            assert content_id in self.outbox or self.store.get(content_id) == image or content_id in self.dropped
        assert all(len(BY_ID[i]) > TOO_LARGE for i in self.dropped)

    def teardown(self) -> None:
        """Once nothing breaks any more, everything arrives, in a bounded number of steps."""
        self.full = False
        self.connect()
        for _ in range(2000):
            for pick in range(len(BY_ID)):
                self.offer(pick)
            self.write()
            if self.up:
                self.receive()
            if self.lookups:
                self.look_up(0)
            if self.down:
                self.answer()
        assert not self.outbox
        self.nothing_is_lost()
        assert not self.sender.in_flight
        assert not self.receiver.unfinished


TestUpload = Upload.TestCase
TestUpload.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)

A, B = list(BY_ID)[5], list(BY_ID)[6]


def sending(size: int = 36) -> UploadSender:
    sender = UploadSender(chunk_bytes=CHUNK)
    sender.offer(Offer(A, size))
    assert sender.pull() == upload.SendOffer(A)
    return sender


def test_a_lying_receiver_is_not_believed() -> None:
    for answer in (
        lambda s: s.stored(A, duplicate=False),
        lambda s: s.stored(B, duplicate=True),
        lambda s: s.accepted(B, 0),
        lambda s: s.accepted(A, 37),
        lambda s: (s.accepted(A, 0), s.accepted(A, 0)),
        lambda s: (s.accepted(A, 0), s.pull(), s.stored(A, duplicate=False)),
        lambda s: s.rejected(B, Reason.INVALID, ""),
        lambda s: (s.stored(A, duplicate=True), s.stored(A, duplicate=True)),
        lambda s: (s.offer(Offer(B, 1)), s.accepted(B, 0)),
    ):
        sender = sending()
        with pytest.raises(ProtocolError, match="reconnect"):
            answer(sender)


def test_resume_goes_on_from_the_offset() -> None:
    sender = sending()
    sender.accepted(A, 20)
    assert [sender.pull(), sender.pull(), sender.pull()] == [
        upload.SendChunk(A, 20, 10),
        upload.SendChunk(A, 30, 6),
        None,
    ]
    assert sender.stored(A, duplicate=False) == upload.MarkStored(A, False)
    assert sender.in_flight == ()


def test_the_window_holds_back_and_always_lets_one_through() -> None:
    sender = UploadSender(max_images=3, max_bytes=100)
    assert sender.room(1 << 40)
    sender.offer(Offer(A, 60))
    assert not sender.room(41)
    assert sender.room(40)
    sender.offer(Offer(B, 1))
    sender.offer(Offer(B, 1))
    sender.offer(Offer(b"c", 1))
    assert not sender.room(1)
    sender.stored(sender.pull().content_id, duplicate=True)  # type: ignore[union-attr]
    assert sender.room(90)


def test_an_image_damaged_time_and_again_is_dropped_with_its_reason() -> None:
    sender = sending()
    for _ in range(upload.CORRUPT_TRIES - 1):
        assert isinstance(sender.rejected(A, Reason.CORRUPT, "hash"), upload.Resend)
        assert sender.pull() == upload.SendOffer(A)
        sender.accepted(A, 0)
        while sender.pull():
            pass
    drop = sender.rejected(A, Reason.CORRUPT, "hash")
    assert isinstance(drop, upload.Drop)
    assert "hash" in drop.detail


def test_a_lying_sender_is_refused() -> None:
    whole = Piece.of(0, b"x" * 10)
    for deed, words in (
        (lambda r: r.offer(b"short", 1), "content id"),
        (lambda r: (r.offer(A, 5), r.offer(A, 5)), "offered twice"),
        (lambda r: r.chunk(A, whole), "not accepted"),
        (lambda r: (r.offer(A, 10), r.chunk(A, whole)), "not accepted"),
        (lambda r: (r.offer(A, 9), r.accept(A, 0), r.chunk(A, whole)), "runs past"),
        (lambda r: (r.offer(A, 10), r.accept(A, 0), r.chunk(A, Piece.of(3, b"x"))), "out of order"),
        (lambda r: (r.offer(A, 20), r.accept(A, 0), r.chunk(A, whole), r.chunk(A, whole)), "replayed"),
        (lambda r: [r.offer(bytes([i]) * 32, 5) for i in range(200)], "at once"),
    ):
        receiver = UploadReceiver(max_image_bytes=60, max_chunk_bytes=CHUNK)
        with pytest.raises(ProtocolError, match=words):
            deed(receiver)


def test_an_oversized_offer_is_refused_for_good() -> None:
    rejected = UploadReceiver(max_image_bytes=60).offer(A, 61)
    assert rejected is not None
    assert rejected.reason is Reason.INVALID


def test_chunks_of_a_rejected_image_are_forgotten_and_it_may_be_offered_again() -> None:
    receiver = UploadReceiver(max_image_bytes=60, max_chunk_bytes=CHUNK)
    receiver.offer(A, 20)
    receiver.accept(A, 0)
    receiver.chunk(A, Piece.of(0, b"x" * 10))
    receiver.reject(A, Reason.NO_SPACE, "full")
    assert receiver.chunk(A, Piece.of(10, b"x" * 10)) is None
    assert receiver.offer(A, 20) is None
    assert receiver.accept(A, 10).offset == 10
