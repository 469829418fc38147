"""Both ends of a session, through every order of drops, restarts and partial frames."""

from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fogline.common.errors import CapacityError, ProtocolError, UnavailableError
from fogline.common.wire.session_client import Ack, ClientSession, Opened, Opening, Step
from fogline.common.wire.session_host import HostSession
from fogline.common.wire.tensors import CHUNK_BYTES, Chunk, Dtype, Frame, Limits, Role, Start, TensorHeader

LIMITS = Limits(window=4)


def tensor(part: bytes) -> TensorHeader:
    return TensorHeader(Role.ACTIVATION, Dtype.UINT8, (len(part),), len(part))


class Pair:
    """A client, a host that sums what it gets, and a line between them that holds messages until they are carried."""

    def __init__(self, *, durable_answers: bool = False) -> None:
        self.client = ClientSession(durable_answers=durable_answers, chunk_bytes=3, limits=LIMITS)
        self.host = HostSession(LIMITS, chunk_bytes=5)
        self.state: list[bytes] = []  # what was executed, in order: the model
        self.saved: tuple[int, list[bytes], tuple[Frame, ...]] = (0, [], ())
        self.up: list[object] = []
        self.down: list[tuple[object, int]] = []
        self.got: list[tuple[int, bytes]] = []
        self.sent: list[bytes] = []
        self.connected = False

    def connect(self) -> None:
        self.up, self.down, self.connected = [], [], True
        self.client.lost()
        self.client.opened(self.host.attach(self.client.opening()))

    def drop(self) -> None:
        self.client.lost()
        self.host.detach()
        self.up, self.down, self.connected = [], [], False

    def restart_host(self) -> None:
        self.drop()
        executed, state, answers = self.saved
        self.state = list(state)
        self.host = HostSession(LIMITS, executed=executed, answers=answers, chunk_bytes=5)

    def submit(self, payload: bytes, body: str = "add") -> None:
        self.client.submit(body, (tensor(payload),), (payload,))
        self.sent.append(payload)

    def client_sends(self) -> bool:
        ready = self.client.ready
        message = self.client.next()
        assert ready == (message is not None)
        if message is not None:
            self.up.append(message)
        return message is not None

    def host_hears(self) -> bool:
        if not self.up or self.host.full:
            return False
        match self.up.pop(0):
            case Step(start, answered):
                self.host.operation(start, answered)
            case Chunk() as chunk:
                self.host.chunk(chunk)
            case Ack(answered):
                self.host.acknowledge(answered)
        return True

    def execute(self) -> bool:
        frame = self.host.take()
        if frame is None:
            return False
        payload = bytes(frame.parts[0])
        self.state.append(payload)
        total = bytes([sum(map(sum, self.state)) % 256]) * 7
        answer = Frame(frame.seq, "sum", (tensor(total),), (total,))
        self.host.done(answer)
        if frame.body == "checkpoint":
            self.saved = (frame.seq, list(self.state), self.host.answers)
            self.host.checkpointed(frame.seq)
        return True

    def host_sends(self) -> bool:
        message = self.host.next()
        if message is not None:
            self.down.append((message, self.host.durable))
        return message is not None

    def client_hears(self) -> bool:
        if not self.down:
            return False
        message, durable = self.down.pop(0)
        if isinstance(message, Start):
            frame = self.client.answer(message, min(durable, message.seq))
        else:
            assert isinstance(message, Chunk)
            frame = self.client.chunk(message)
        if frame is not None:
            self.got.append((frame.seq, bytes(frame.parts[0])))
        return True

    def settle(self) -> None:
        if not self.connected:
            self.connect()
        steps = (self.client_sends, self.host_hears, self.execute, self.host_sends, self.client_hears)
        while any([step() for step in steps]):
            pass


MOVES = st.lists(
    st.sampled_from(
        ["submit", "checkpoint", "client_sends", "host_hears", "execute", "host_sends", "client_hears"] * 3
        + ["drop", "restart_host", "connect"]
    ),
    max_size=120,
)


@settings(max_examples=400, deadline=None)
@given(MOVES)
def test_every_operation_is_executed_once_in_order_and_answered_once_in_order(moves):
    pair, count = Pair(), 0
    for move in moves:
        match move:
            case "submit" | "checkpoint":
                if pair.client.under_way < 10:
                    count += 1
                    pair.submit(bytes([count]) * (count % 11), "checkpoint" if move == "checkpoint" else "add")
            case "connect" | "drop" | "restart_host":
                getattr(pair, move)()
            case _:
                if pair.connected or move == "execute":
                    getattr(pair, move)()
    pair.settle()
    assert pair.state == pair.sent
    totals = [sum(map(sum, pair.sent[: n + 1])) % 256 for n in range(len(pair.sent))]
    assert pair.got == [(n + 1, bytes([total]) * 7) for n, total in enumerate(totals)]
    assert pair.client.under_way == 0
    assert pair.client.durable == pair.host.durable


def test_an_answered_operation_of_inference_leaves_the_log():
    pair = Pair(durable_answers=True)
    for n in range(20):
        pair.submit(bytes([n]) * 9)
    pair.settle()
    assert pair.client.log_size == 0
    assert len(pair.host.answers) <= LIMITS.window


def test_no_more_than_a_window_is_sent_without_answers():
    pair = Pair()
    for n in range(20):
        pair.submit(bytes([n]))
    pair.connect()
    while pair.client_sends():
        pass
    assert len(pair.up) == LIMITS.window


def test_a_frame_goes_on_at_the_byte_that_the_host_holds():
    pair = Pair()
    pair.submit(bytes(range(20)))
    pair.connect()
    for _ in range(3):
        pair.client_sends()
        pair.host_hears()
    pair.drop()
    pair.connect()
    message = pair.client.next()
    assert isinstance(message, Chunk)
    assert message.offset == 9


def test_an_answer_goes_on_at_the_byte_that_the_client_holds():
    pair = Pair()
    pair.submit(b"1")
    pair.connect()
    pair.client_sends()
    pair.host_hears()
    pair.execute()
    pair.host_sends()
    pair.client_hears()
    pair.drop()
    pair.connect()
    message = pair.host.next()
    assert isinstance(message, Chunk)
    assert message.offset == 5


def test_a_full_log_is_an_error_that_says_what_to_do():
    client = ClientSession(durable_answers=False, log_bytes=10, limits=LIMITS)
    client.submit("add", (tensor(b"12345678"),), (b"12345678",))
    assert client.wants_checkpoint
    with pytest.raises(CapacityError, match="checkpoint"):
        client.submit("add", (tensor(b"12345678"),), (b"12345678",))


def test_a_host_that_lost_the_session_is_told_from_one_that_can_be_brought_up():
    pair = Pair()
    pair.submit(b"1")
    pair.settle()
    pair.drop()
    pair.client.opened(Opened(fresh=True, held_through=0))  # nothing was made durable: all is sent again
    assert isinstance(pair.client.next(), Step)
    pair = Pair()
    pair.submit(b"1", "checkpoint")
    pair.settle()
    with pytest.raises(UnavailableError, match="the session is lost"):
        pair.client.opened(Opened(fresh=True, held_through=0))
    with pytest.raises(UnavailableError, match="the session is lost"):
        pair.client.opened(Opened(fresh=False, held_through=9))


def test_a_client_begins_again_from_a_checkpoint():
    client = ClientSession(durable_answers=False, resume_from=7, limits=LIMITS)
    assert client.opening() == Opening(7, rollback_to=7, chunk_bytes=CHUNK_BYTES)
    client.opened(Opened(fresh=False, held_through=7, durable_through=7))
    assert client.submit("add") == 8
    other = ClientSession(durable_answers=False, resume_from=7, limits=LIMITS)
    with pytest.raises(UnavailableError, match="no checkpoint of step 7"):
        other.opened(Opened(fresh=False, held_through=9))


def start(seq: int, size: int = 4) -> Start:
    return Start(seq, "add", (tensor(bytes(size)),), b"\0")


@pytest.mark.parametrize(
    ("seq", "said"), [(1, "was taken already"), (0, "was taken already"), (3, "out of order"), (9, "out of order")]
)
def test_a_host_refuses_repeats_and_gaps(seq, said):
    host = HostSession(LIMITS, executed=1)
    with pytest.raises(ProtocolError, match=said):
        host.operation(start(seq))


def test_a_host_refuses_what_no_client_sends():
    host = HostSession(LIMITS)
    with pytest.raises(ProtocolError, match="without its header"):
        host.chunk(Chunk(1, 0, b"x"))
    with pytest.raises(ProtocolError, match="is acknowledged"):
        host.acknowledge(1)
    host.operation(start(1))
    with pytest.raises(ProtocolError, match="within the payload"):
        host.operation(start(2))
    with pytest.raises(ProtocolError, match="a part of answer 5"):
        host.attach(Opening(1, partial_answer=5))


def test_a_client_that_never_acknowledges_is_cut_off():
    host = HostSession(LIMITS)
    kept = 2 * LIMITS.window + 3
    for seq in range(1, kept + 1):
        host.operation(Start(seq, "add"))
        assert host.take() is not None
        host.done(Frame(seq, "sum"))
    with pytest.raises(ProtocolError, match="not acknowledged"):
        host.operation(Start(kept + 1, "add"))


def test_a_client_refuses_what_no_host_sends():
    client = ClientSession(durable_answers=False, limits=LIMITS)
    client.submit("add")
    with pytest.raises(ProtocolError, match="an answer to 2"):
        client.answer(Start(2, "sum"))
    with pytest.raises(ProtocolError, match="durable"):
        client.answer(Start(1, "sum"), durable_through=2)
    with pytest.raises(ProtocolError, match="without its header"):
        client.chunk(Chunk(1, 0, b"x"))
    client.answer(Start(1, "sum"))
    with pytest.raises(ProtocolError, match="an answer to 2"):
        client.answer(Start(2, "sum"))


def damage(kind: str, line: list, at: int) -> None:
    """What happens to messages on a line that nobody protects."""
    if not line:
        return
    at %= len(line)
    match kind:
        case "repeat":
            line.insert(at, line[at])
        case "swap" if at:
            line[at - 1], line[at] = line[at], line[at - 1]
        case "lose":
            del line[at]
        case "late":
            line.append(line[at])
        case "flip":
            line[at] = flipped(line[at])


def flipped(message):
    """The same with a bit of its payload turned over."""
    match message:
        case (inner, durable):
            return flipped(inner), durable
        case Step(start, answered):
            return Step(flipped(start), answered)
        case Start() | Chunk() if len(message.data):
            return replace(message, data=bytes([message.data[0] ^ 1]) + bytes(message.data[1:]))
    return message


DAMAGE = st.lists(
    st.tuples(
        st.sampled_from(
            ["submit", "client_sends", "host_hears", "execute", "host_sends", "client_hears"] * 3
            + ["checkpoint", "drop", "restart_host", "connect", "connect"]
            + [f"{kind} {line}" for kind in ("repeat", "swap", "lose", "late", "flip") for line in ("up", "down")]
        ),
        st.integers(0, 9),
    ),
    max_size=150,
)


@settings(max_examples=400, deadline=None)
@given(DAMAGE)
def test_whatever_a_line_does_to_messages_nothing_is_executed_twice_or_out_of_order(moves):
    pair, count = Pair(), 0
    for move, at in moves:
        try:
            match move.split():
                case ["submit" | "checkpoint"]:
                    if pair.client.under_way < 10:
                        count += 1
                        pair.submit(bytes([count]) * (count % 11), "checkpoint" if move == "checkpoint" else "add")
                case ["connect" | "drop" | "restart_host"]:
                    getattr(pair, move)()
                case [kind, line]:
                    damage(kind, getattr(pair, line), at)
                case _:
                    if pair.connected or move == "execute":
                        getattr(pair, move)()
        except ProtocolError:
            pair.drop()
        assert pair.state == pair.sent[: len(pair.state)]
        assert [seq for seq, _ in pair.got] == list(range(1, len(pair.got) + 1))
    for _ in range(3):  # what was held of a frame in each direction may be damaged, which its end shows
        pair.drop()
        with suppress(ProtocolError):
            pair.settle()
    assert pair.state == pair.sent
    totals = [sum(map(sum, pair.sent[: n + 1])) % 256 for n in range(len(pair.sent))]
    assert pair.got == [(n + 1, bytes([total]) * 7) for n, total in enumerate(totals)]


NUMBERS = st.integers(0, 6) | st.integers(0, (1 << 64) - 1)
FORGED = st.one_of(
    st.builds(
        lambda seq, size, data, crc, answered: Step(Start(seq, "forged", (tensor(bytes(size)),), data, crc), answered),
        NUMBERS,
        st.integers(0, 12),
        st.binary(max_size=12),
        st.none() | st.just(0),
        NUMBERS,
    ),
    st.builds(Chunk, NUMBERS, NUMBERS, st.binary(max_size=12), st.none() | st.just(0)),
    st.builds(Ack, NUMBERS),
)


@settings(deadline=None)
@given(st.lists(FORGED, max_size=8), st.integers(0, 6))
def test_forged_messages_are_refused_or_harm_only_their_own_session(forged, before):
    """The host raises ProtocolError or takes it as an operation, and keeps within its bounds."""
    pair = Pair()
    pair.connect()
    for number in range(before):
        pair.submit(bytes([number]) * 5)
        pair.client_sends()
        pair.host_hears()
        pair.execute()
    for message in forged:
        try:
            pair.up = [message]
            if not pair.host_hears():
                break
        except ProtocolError:
            pair.host.detach()
            pair.host.attach(Opening(0))
        while pair.execute():
            pass
        assert pair.host.executed == len(pair.state) <= pair.host.held
        assert len(pair.host.answers) <= 2 * LIMITS.window + 3
    for message in forged:
        try:
            if isinstance(message, Step):
                pair.client.answer(message.start, message.answered_through)
            elif isinstance(message, Chunk):
                pair.client.chunk(message)
        except ProtocolError:
            pair.client.lost()
        assert pair.client.durable <= pair.client.answered <= pair.client.submitted
