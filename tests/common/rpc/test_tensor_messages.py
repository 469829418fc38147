"""What is serialised by hand is what protobuf serialises, and anything else is left to protobuf."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from fogline.common.rpc import tensor_messages as messages
from fogline.common.rpc.gen import tensors_pb2 as pb
from fogline.common.rpc.tensor_stream import read_request, read_response, write_request, write_response
from fogline.common.wire.session_client import Ack, Step
from fogline.common.wire.session_host import Reply
from fogline.common.wire.tensors import Chunk, Dtype, Role, Stage, Start, TensorHeader

NUMBERS = st.integers(0, (1 << 56) - 1)
CRCS = st.none() | st.integers(0, (1 << 32) - 1)
HEADER = TensorHeader(Role.ACTIVATION, Dtype.FLOAT16, (2, 3), 12, (Stage(1, 2, b"p"),), "h")


@given(NUMBERS, NUMBERS, st.binary(max_size=300), CRCS)
def test_a_chunk_is_written_and_read_as_protobuf_does(seq, offset, data, crc32):
    chunk = Chunk(seq, offset, memoryview(data), crc32)
    for write, read, whole in (
        (write_request, read_request, pb.SessionRequest),
        (write_response, read_response, pb.SessionResponse),
    ):
        written = write(chunk)
        assert messages.chunk_of(whole.FromString(written).chunk) == Chunk(seq, offset, data, crc32)
        got = read(written)
        if not isinstance(got, Chunk):  # a field of zero is not written; protobuf reads such a message
            assert seq == 0 or not data
            got = messages.chunk_of(got.chunk)
        assert got == Chunk(seq, offset, data, crc32)


@given(NUMBERS, NUMBERS, st.binary(min_size=1, max_size=300), CRCS)
def test_what_protobuf_writes_is_read_the_same(seq, offset, data, crc32):
    message = pb.PayloadChunk(seq=seq, offset=offset, data=data)
    if crc32 is not None:
        message.crc32 = crc32
    got = read_request(pb.SessionRequest(chunk=message).SerializeToString())
    assert (got if isinstance(got, Chunk) else messages.chunk_of(got.chunk)) == Chunk(seq, offset, data, crc32)


@pytest.mark.parametrize("data", [b"", b"x", bytes(300)])
def test_an_operation_and_an_answer_keep_all_they_say(data):
    crc32 = 7 if data else None
    step = Step(Start(3, pb.Backward(forward=2), (HEADER,), memoryview(data), crc32), 2)
    request = read_request(write_request(step))
    assert isinstance(request, pb.SessionRequest)
    assert request.operation.answered_through == 2
    assert messages.operation(request.operation) == Start(3, pb.Backward(forward=2), (HEADER,), data, crc32)
    body = pb.Answer(structure=b"s", failure=pb.Failure(error="InputError", detail="d"))
    response = read_response(write_response(Reply(Start(3, body, (HEADER,), memoryview(data), crc32), 9)))
    assert isinstance(response, pb.SessionResponse)
    start = messages.answer(response.answer)
    assert start.tensors == (HEADER,)
    assert (start.data, start.crc32) == (data, crc32)
    body.seq, body.durable_through = 3, 3  # never beyond the operation that is answered
    assert start.body == body
    assert read_request(write_request(Ack(5))) == pb.SessionRequest(acknowledge=pb.Acknowledge(answered_through=5))


@given(st.binary(max_size=60) | st.binary(max_size=40).map(lambda data: b"\x1a" + bytes([len(data)]) + data))
def test_any_bytes_are_read_as_protobuf_reads_them(data):
    try:
        expected = pb.SessionRequest.FromString(data)
    except DecodeError:
        with pytest.raises(DecodeError):
            read_request(data)
        return
    got = read_request(data)
    if isinstance(got, Chunk):
        assert expected.WhichOneof("message") == "chunk"
        assert got == messages.chunk_of(expected.chunk)
    else:
        assert got == expected


@given(NUMBERS, st.binary(min_size=1, max_size=300), CRCS, st.data())
def test_a_chunk_with_a_damaged_byte_is_read_as_protobuf_reads_it(seq, payload, crc32, data):
    written = bytearray(write_request(Chunk(seq, 5, payload, crc32)))
    written[data.draw(st.integers(0, min(len(written) - 1, 40)))] ^= data.draw(st.integers(1, 255))
    test_any_bytes_are_read_as_protobuf_reads_them.hypothesis.inner_test(bytes(written))
