import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fogline.common.errors import ProtocolError
from fogline.common.wire.tensors import (
    MARK_BYTES,
    Chunk,
    Dtype,
    Frame,
    Incoming,
    Limits,
    Outgoing,
    Role,
    Stage,
    Start,
    TensorHeader,
)


def header(size: int, **changes: object) -> TensorHeader:
    fields: dict[str, object] = {"role": Role.ACTIVATION, "dtype": Dtype.UINT8, "shape": (size,), "coded_bytes": size}
    return TensorHeader(**{**fields, **changes})  # type: ignore[arg-type]


def deliver(outgoing: Outgoing, incoming: Incoming | None = None) -> Incoming:
    if incoming is None:
        incoming = Incoming(outgoing.start(), Limits())
    while not outgoing.done:
        incoming.take(outgoing.chunk())
    return incoming


@given(st.lists(st.binary(max_size=40), max_size=5), st.integers(1, 16))
def test_a_frame_arrives_as_it_was_sent_whatever_the_chunks(parts, chunk_bytes):
    tensors = tuple(header(len(part)) for part in parts)
    incoming = deliver(Outgoing(Frame(3, "body", tensors, tuple(parts)), chunk_bytes))
    assert incoming.complete
    assert [bytes(part) for part in incoming.frame().parts] == parts
    assert incoming.frame().tensors == tensors


@given(st.binary(min_size=2, max_size=200), st.integers(1, 16), st.data())
def test_a_frame_goes_on_where_the_receiver_holds_it(payload, chunk_bytes, data):
    frame = Frame(1, None, (header(len(payload)),), (payload,))
    outgoing = Outgoing(frame, chunk_bytes)
    incoming = Incoming(outgoing.start(), Limits())
    for _ in range(data.draw(st.integers(0, 20))):
        if not outgoing.done:
            incoming.take(outgoing.chunk())
    if incoming.complete:
        return
    again = Outgoing(frame, data.draw(st.integers(1, 16)))
    again.rewind(incoming.offset)
    assert bytes(deliver(again, incoming).frame().parts[0]) == payload


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2)])
def test_scalars_and_empty_tensors_are_tensors(shape):
    size = 4 if shape == () else 0
    tensor = header(size, dtype=Dtype.FLOAT32, shape=shape)
    incoming = deliver(Outgoing(Frame(1, None, (tensor,), (bytes(size),))))
    assert incoming.complete
    assert incoming.frame().parts[0].nbytes == size


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (header(4, shape=(5,)), "raw tensor of 5"),
        (header(4, shape=(1 << 62, 1 << 62)), "bytes once decoded"),
        (header(0, shape=(0, 1 << 62, 1 << 62)), "bytes once decoded"),
        (header(4, shape=(1 << 63, 0)), "a dimension"),
        (header(4, shape=(-1,)), "a dimension"),
        (header(4, shape=(1,) * 9), "9 dimensions"),
        (header(1 << 20, shape=(4,), stages=(Stage(1, 1),)), "no codec needs as many"),
        (header(-1, shape=(4,), stages=(Stage(1, 1),)), "no codec needs as many"),
        (header(4, stages=(Stage(1, 1),) * 5), "5 codec stages"),
        (header(4, stages=(Stage(1, 1, bytes(70_000)),)), "codec parameters"),
        (header(4, name="x" * 300), "a name of 300"),
        (header(2 << 30, shape=(2 << 30,)), "bytes once decoded"),
    ],
)
def test_a_forged_header_is_refused_before_anything_is_allocated(tensor, said):
    with pytest.raises(ProtocolError, match=said):
        Incoming(Start(1, None, (tensor,)), Limits())


def test_a_frame_larger_than_the_limit_is_refused():
    limits = Limits(max_frame_bytes=100)
    with pytest.raises(ProtocolError, match="payload of 120"):
        Incoming(Start(1, None, (header(60), header(60))), limits)
    with pytest.raises(ProtocolError, match="65 tensors"):
        Incoming(Start(1, None, (header(0),) * 65), Limits())


@pytest.mark.parametrize(
    ("chunk", "said"),
    [
        (Chunk(1, 0, b"ab"), "is next"),
        (Chunk(1, 4, b"ab"), "is next"),
        (Chunk(2, 2, b"ab"), "is next"),
        (Chunk(1, 2, b""), "0 bytes"),
        (Chunk(1, 2, b"abcdefghi"), "stay within"),
        (Chunk(1, 2, b"ab", 7), "with its last bytes"),
        (Chunk(1, 2, b"abcdefgh"), "with its last bytes"),
        (Chunk(1, 2, b"abcdefgh", 7), "do not match their checksum"),
    ],
)
def test_a_chunk_that_does_not_continue_the_frame_is_refused(chunk, said):
    incoming = Incoming(Start(1, None, (header(10),), b"01"), Limits())
    with pytest.raises(ProtocolError, match=said):
        incoming.take(chunk)


def test_every_flipped_bit_is_found():
    payload = bytes(range(64))
    for bit in range(len(payload) * 8):
        flipped = bytearray(payload)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ProtocolError, match="checksum"):
            Incoming(Start(1, None, (header(64),), bytes(flipped), zlib.crc32(payload)), Limits())


def test_data_of_an_empty_payload_is_refused():
    with pytest.raises(ProtocolError, match="empty payload"):
        Incoming(Start(1, None, (), b"x"), Limits())


def test_going_on_again_and_again_costs_no_more_than_a_mark():
    payload = bytes(range(256)) * (4 * MARK_BYTES // 256)
    parts = (payload[:100], payload[100 : 3 * MARK_BYTES], payload[3 * MARK_BYTES :])
    frame = Frame(1, None, tuple(header(len(part)) for part in parts), parts)
    outgoing = Outgoing(frame, 100_000)
    incoming = Incoming(outgoing.start(), Limits())
    while incoming.offset < 3.5 * MARK_BYTES:
        incoming.take(outgoing.chunk())
    for _ in range(3):
        read = 0

        def counted(count, inner=outgoing._read):
            nonlocal read
            read += count
            return inner(count)

        outgoing._read = counted
        outgoing.rewind(incoming.offset)
        del outgoing._read
        assert read <= MARK_BYTES + outgoing.chunk_bytes
        incoming.take(outgoing.chunk())
    assert b"".join(deliver(outgoing, incoming).frame().parts) == payload
