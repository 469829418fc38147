"""Client and host of a tensor session over real connections that break in every way."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import pytest
from rpc_helpers import EDGE, INSECURE, Loop
from tensor_parts import SESSION, Line, Serving, chain, send, tensor

from fogline.common import errors
from fogline.common.rpc.accounting import LinkMeter
from fogline.common.rpc.channel import connect
from fogline.common.rpc.gen import tensors_pb2 as pb
from fogline.common.rpc.gen import tensors_pb2_grpc
from fogline.common.rpc.peer import Peer
from fogline.common.rpc.status import translate
from fogline.common.rpc.tensor_client import Answered
from fogline.common.wire.session_client import ClientSession


@pytest.fixture
def serving(loop: Loop) -> Iterator[Serving]:
    made = Serving(loop)
    yield made
    made.stop()


@pytest.fixture
def line(serving: Serving) -> Iterator[Line]:
    made = Line(serving.port)
    yield made
    made.close()


def until(condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


PAYLOADS = [os.urandom(size) for size in (0, 1, 9_999, 10_000, 10_001, 250_000, 5, 70_000)]


def test_operations_are_answered_in_order_whatever_their_size(serving):
    with serving.client() as client:
        futures = [send(client, payload) for payload in PAYLOADS]
        for count, future in enumerate(futures, 1):
            answer = future.result(20)
            assert bytes(answer.frame.parts[0])[:32] == chain(PAYLOADS[:count])
            assert answer.body.compute_us >= 0
    until(lambda: serving.service.sessions == 0)
    assert serving.host.hosted[0].closed


def test_an_operations_memory_is_free_before_its_answer_leaves(serving):
    with serving.client() as client:
        for _ in range(200):
            send(client, b"x" * 1000).result(20)
            assert serving.host.hosted[0].last() is None


def test_a_dropped_connection_loses_and_repeats_nothing(serving, line):
    with serving.client(line.port) as client:
        done = 0
        for round_number in range(6):
            line.budget = 3_000 + 61_000 * round_number  # within a header, within a payload, between two
            futures = [send(client, payload) for payload in PAYLOADS]
            for future in futures:
                done += 1
                assert future.result(20).frame.seq == done
        assert bytes(send(client, b"last").result(20).frame.parts[0]) == chain([*PAYLOADS * 6, b"last"])
    assert line.connections >= 4
    assert len(serving.host.hosted) == 1
    assert serving.host.hosted[0].executed == done + 1


def test_a_restarted_host_is_brought_up_from_its_checkpoint(serving):
    with serving.client() as client:
        for payload in PAYLOADS[:3]:
            send(client, payload).result(20)
        send(client, b"save", pb.Checkpoint()).result(20)
        assert client.session.durable == 4
        assert client.session.log_size == 0
        futures = [send(client, payload) for payload in PAYLOADS[3:]]
        futures[0].result(20)
        serving.restart()
        assert bytes(futures[-1].result(20).frame.parts[0])[:32] == chain([*PAYLOADS[:3], b"save", *PAYLOADS[3:]])


def test_a_host_that_restarts_before_any_checkpoint_is_sent_everything_again(serving):
    with serving.client() as client:
        for payload in PAYLOADS:
            send(client, payload).result(20)
        serving.restart()
        assert bytes(send(client, b"x").result(20).frame.parts[0]) == chain([*PAYLOADS, b"x"])


def test_a_host_that_lost_a_durable_state_says_so(serving):
    with serving.client() as client:
        send(client, b"save", pb.Checkpoint()).result(20)
        serving.host.disk.clear()
        serving.restart()
        with pytest.raises(errors.UnavailableError, match="the session is lost"):
            send(client, b"x").result(20)
        with pytest.raises(errors.UnavailableError, match="the session is lost"):
            send(client, b"x")


def test_a_new_client_goes_on_from_a_checkpoint(serving):
    client = serving.client()
    send(client, b"1").result(20)
    send(client, b"save", pb.Checkpoint()).result(20)
    send(client, b"forgotten").result(20)
    client.abandon()
    session = ClientSession(durable_answers=False, resume_from=2)
    with serving.client(session=session) as again:
        assert bytes(send(again, b"2").result(20).frame.parts[0]) == chain([b"1", b"save", b"2"])
    other = serving.client(session=ClientSession(durable_answers=False, resume_from=77))
    with pytest.raises(errors.ConfigError, match="not known here"):
        send(other, b"x").result(30)
    other.abandon()


def test_a_client_that_stalls_in_the_middle_of_a_frame_loses_its_stream_and_not_its_session(loop):
    serving = Serving(loop, stall_s=0.3)
    line = Line(serving.port)
    line.budget, line.stall = 100_000, True
    try:
        with serving.client(line.port, stall_s=1.0) as client:
            assert bytes(send(client, PAYLOADS[5]).result(20).frame.parts[0])[:32] == chain([PAYLOADS[5]])
        assert line.connections >= 2
        assert serving.host.hosted[0].executed == 1
    finally:
        line.close()
        serving.stop()


def test_a_damaged_frame_is_sent_again(serving, line):
    line.budget, line.damage = 150_000, True
    with serving.client(line.port) as client:
        for payload in PAYLOADS:
            send(client, payload)
        assert bytes(send(client, b"x").result(20).frame.parts[0]) == chain([*PAYLOADS, b"x"])
    assert not line.damage


def test_a_long_operation_is_progress(serving):
    with serving.client(stall_s=3.0) as client:
        send(client, b"1").result(20)
        gate = serving.host.hosted[0].gate
        gate.clear()
        future = send(client, b"2")
        timer = threading.Timer(4.5, gate.set)
        timer.start()
        assert future.result(20).frame.seq == 2
        timer.join()
    assert len(serving.host.hosted) == 1


def test_a_refused_operation_leaves_the_session_as_it_was(serving):
    with serving.client() as client:
        first = send(client, b"1")
        with pytest.raises(errors.InputError, match="thirteen"):
            client.submit(pb.ScaleGradients(factor=13.0)).result(20)
        assert bytes(send(client, b"2").result(20).frame.parts[0]) == chain([b"1", b"2"])
        assert first.done()


@pytest.mark.parametrize(("factor", "error"), [(666.0, errors.FormatError), (7.0, errors.InternalError)])
def test_an_operation_that_failed_half_way_ends_the_session(serving, factor, error):
    with serving.client() as client:
        with pytest.raises(error):
            client.submit(pb.ScaleGradients(factor=factor)).result(20)
        until(lambda: client._failure is not None)
        with pytest.raises(error):
            send(client, b"x")


def test_what_no_retry_mends_fails_at_once(serving):
    client = serving.client(setup=b"refuse")
    with pytest.raises(errors.ConfigError, match="not allowed"):
        client.wait_open(20)
    client.close()


def test_a_session_belongs_to_who_opened_it(serving):
    with serving.client() as client:
        send(client, b"1").result(20)
        thief = serving.client(me=Peer("edge-2", "edge"))
        with pytest.raises(errors.IdentityError, match="is not of edge-2"):
            thief.wait_open(20)
        thief.close()
        assert bytes(send(client, b"2").result(20).frame.parts[0]) == chain([b"1", b"2"])


def test_a_full_host_says_so(loop):
    serving = Serving(loop, max_sessions=1)
    with serving.client() as client:
        send(client, b"1").result(20)
        other = serving.client(session_id=bytes(16))
        with pytest.raises(errors.CapacityError, match="sessions are open"):
            other.wait_open(20)
        other.close()
    serving.stop()


def test_a_session_without_its_client_makes_room_after_a_while(loop):
    serving = Serving(loop, max_sessions=1, ttl_s=0.0)
    first = serving.client()
    send(first, b"1").result(20)
    first.abandon()
    until(lambda: all(live.stream is None for live in serving.service._live.values()))
    with serving.client(session_id=bytes(16)) as client:
        assert bytes(send(client, b"2").result(20).frame.parts[0]) == chain([b"2"])
    serving.stop()


def test_a_session_that_takes_long_to_make_is_made_once(loop):
    serving = Serving(loop)
    line = Line(serving.port)
    serving.host.gate.clear()
    try:
        with serving.client(line.port, stall_s=3.0) as client:
            future = send(client, b"1")
            assert serving.host.opening.wait(10)
            line.cut()
            until(lambda: line.connections == 2)
            began = time.monotonic()
            until(lambda: time.monotonic() - began > 4.5)  # longer than nothing may be heard for
            serving.host.gate.set()
            assert bytes(future.result(20).frame.parts[0]) == chain([b"1"])
        assert line.connections == 2
        assert len(serving.host.hosted) == 1
    finally:
        serving.host.gate.set()
        line.close()
        serving.stop()


def test_a_link_too_slow_for_a_chunk_gets_smaller_ones(loop):
    serving = Serving(loop, stall_s=0.4)
    line = Line(serving.port)
    line.rate = 200_000.0
    payload = os.urandom(400_000)
    try:
        session = ClientSession(durable_answers=False)  # chunks of 256 KiB: 1.3 s each
        with serving.client(line.port, stall_s=0.4, session=session) as client:
            assert bytes(send(client, payload).result(30).frame.parts[0])[:32] == chain([payload])
            assert client.session.chunk_bytes < 100_000
        assert serving.host.hosted[0].executed == 1
    finally:
        line.close()
        serving.stop()


def test_a_slow_link_on_which_something_moves_is_left_alone(loop):
    serving = Serving(loop, stall_s=1.0)
    line = Line(serving.port)
    line.rate = 200_000.0
    try:
        with serving.client(line.port, stall_s=1.0) as client:  # chunks of 10 kB
            send(client, os.urandom(600_000)).result(30)
        assert line.connections == 1
    finally:
        line.close()
        serving.stop()


def test_a_session_that_was_idle_for_long_connects_again(serving, line):
    with serving.client(line.port, stall_s=0.2, give_up_s=0.3) as client:
        send(client, b"1").result(20)
        began = time.monotonic()
        until(lambda: time.monotonic() - began > 0.6)
        line.cut()
        assert bytes(send(client, b"2").result(20).frame.parts[0]) == chain([b"1", b"2"])


def test_a_mistake_of_ours_costs_the_connection_and_not_the_session(loop):
    mistakes = iter([True])

    def observe(frame: object, answer: object) -> None:
        if next(mistakes, False):
            raise ZeroDivisionError

    serving = Serving(loop, observe=observe)
    with serving.client() as client:
        futures = [send(client, payload) for payload in PAYLOADS]
        assert bytes(futures[-1].result(20).frame.parts[0])[:32] == chain(PAYLOADS)
    assert len(serving.host.hosted) == 2
    assert serving.host.hosted[0].closed
    serving.stop()


def test_an_operation_can_not_be_taken_back_and_may_be_followed_by_another_from_its_callback(serving):
    followed: list[Future[Answered]] = []
    with serving.client() as client:
        first = send(client, b"1")
        first.add_done_callback(lambda _: followed.append(send(client, b"2")))
        assert not first.cancel()
        first.result(20)
        until(lambda: bool(followed))
        assert bytes(followed[0].result(20).frame.parts[0]) == chain([b"1", b"2"])
        (live,) = serving.service._live.values()
        assert not live.arrived


def test_an_inference_waits_for_room_in_the_log(serving):
    session = ClientSession(durable_answers=True, log_bytes=100_000)
    payload = bytes(60_000)
    with serving.client(session=session, mode=pb.SESSION_MODE_INFERENCE) as client:
        futures = [send(client, payload) for _ in range(6)]
        assert bytes(futures[-1].result(20).frame.parts[0])[:32] == chain([payload] * 6)
        serving.host.hosted[0].gate.clear()
        send(client, payload)
        with pytest.raises(errors.CapacityError, match="log_bytes"):
            client.submit(pb.Forward(), (tensor(payload),), (payload,), wait_s=0.05)
        serving.host.hosted[0].gate.set()


def test_nothing_listening_is_an_error_after_the_wait(serving):
    port = serving.port
    serving.stop()
    client = serving.client(port, give_up_s=0.2)
    with pytest.raises(errors.UnavailableError):
        client.wait_open(20)
    client.close()
    serving.start("127.0.0.1:0")


def stub(serving: Serving) -> tensors_pb2_grpc.TensorServiceStub:
    channel = connect(f"127.0.0.1:{serving.port}", INSECURE, meter=LinkMeter("edge-fog"), me=EDGE)
    serving.loop_channel = channel  # type: ignore[attr-defined]
    return tensors_pb2_grpc.TensorServiceStub(channel)


def test_a_host_describes_itself_and_answers_probes(serving):
    made = stub(serving)
    with translate():
        assert made.Describe(pb.DescribeRequest(protocol=1, model="a:b")).allowed
        refused = made.Describe(pb.DescribeRequest(protocol=1, model="os:system"))
        assert not refused.allowed
        assert refused.limits.window == 4
        assert len(made.Probe(pb.ProbeRequest(padding=bytes(1000), want=2000)).padding) == 2000
    with pytest.raises(errors.ProtocolError, match="at most"), translate():
        made.Probe(pb.ProbeRequest(want=1 << 30))
    with pytest.raises(errors.ProtocolError, match="protocol 9"), translate():
        made.Describe(pb.DescribeRequest(protocol=9))
    serving.loop_channel.close()  # type: ignore[attr-defined]


OPEN = pb.SessionRequest(open=pb.OpenSession(session=SESSION, protocol=1, setup=b"{}"))
GOOD = pb.TensorHeader(role=1, dtype=5, shape=[4], coded_bytes=4)


def operation(**fields: object) -> pb.SessionRequest:
    return pb.SessionRequest(operation=pb.Operation(**{"seq": 1, "forward": pb.Forward(), **fields}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("requests", "said"),
    [
        ([operation()], "begins with its opening"),
        ([pb.SessionRequest()], "begins with its opening"),
        ([pb.SessionRequest(open=pb.OpenSession(session=b"short", protocol=1))], "session id of 5"),
        ([pb.SessionRequest(open=pb.OpenSession(session=SESSION, protocol=3))], "protocol 3"),
        ([OPEN, OPEN], "unknown here"),
        ([OPEN, operation(seq=2)], "out of order"),
        ([OPEN, operation(), operation()], "taken already"),
        ([OPEN, pb.SessionRequest(operation=pb.Operation(seq=1))], "no kind"),
        ([OPEN, operation(tensors=[pb.TensorHeader(role=77, dtype=5)])], "knows no such tensor"),
        ([OPEN, operation(tensors=[pb.TensorHeader(role=1, dtype=99)])], "knows no such tensor"),
        ([OPEN, operation(tensors=[pb.TensorHeader(role=1, dtype=5, shape=[1] * 9)])], "9 dimensions"),
        ([OPEN, operation(tensors=[pb.TensorHeader(role=1, dtype=5, shape=[1 << 62], coded_bytes=4)])], "once decoded"),
        ([OPEN, operation(tensors=[GOOD], data=b"abcd")], "checksum"),
        ([OPEN, operation(tensors=[GOOD], data=b"abcd", crc32=1)], "match their checksum"),
        ([OPEN, operation(tensors=[GOOD], data=b"abcdef")], "stay within"),
        ([OPEN, operation(data=b"x")], "empty payload"),
        ([OPEN, pb.SessionRequest(chunk=pb.PayloadChunk(seq=1, data=b"x"))], "without its header"),
        ([OPEN, pb.SessionRequest(acknowledge=pb.Acknowledge(answered_through=5))], "acknowledged"),
    ],
)
def test_what_no_client_sends_ends_the_stream_with_a_reason(serving, requests, said):
    with pytest.raises(errors.ProtocolError, match=said), translate():
        list(stub(serving).Session(iter(requests), timeout=20))
    serving.loop_channel.close()  # type: ignore[attr-defined]


def test_headers_are_checked_before_they_are_sent(serving):
    with serving.client() as client:
        client.wait_open(20)
        big = tensor(bytes(9 << 20))
        with pytest.raises(errors.ProtocolError, match="send smaller batches"):
            client.submit(pb.Forward(), (big,), (bytes(9 << 20),))
