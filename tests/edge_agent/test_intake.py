"""The receiving state machine, without a network."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fogline.common.errors import ProtocolError
from fogline.common.wire.transfer import Piece
from fogline.edge_agent.intake import MAX_RECORD_BYTES, Announced, Intake, Wanted


def announced(cursor: int, size: int = 100) -> Announced:
    return Announced(cursor, size, cursor.to_bytes(32, "big"))


def ask(intake: Intake, record: Announced) -> None:
    intake.ask(Wanted(record.cursor, record.digest, record.size, 0))


def test_cursors_rise_and_the_head_moves_on() -> None:
    intake = Intake(5)
    with pytest.raises(ProtocolError, match="rise"):
        intake.announce([announced(5)], 5)
    intake.announce([announced(7)], 20)
    assert intake.safe_cursor == 6
    with pytest.raises(ProtocolError, match="rise"):
        intake.announce([announced(20)], 20)
    assert intake.finish(7) == 20
    intake.announce([], 30)
    assert intake.safe_cursor == 30


def test_the_window_is_bounded_but_takes_one_of_any_size() -> None:
    intake = Intake(0, max_items=3, max_bytes=1000)
    intake.announce([announced(1, MAX_RECORD_BYTES), *(announced(n, 400) for n in range(2, 9))], 8)
    first = intake.next()
    assert first is not None
    ask(intake, first)
    assert intake.next() is None
    intake.ended(1)
    for _ in range(2):
        record = intake.next()
        assert record is not None
        ask(intake, record)
    assert intake.next() is None


def test_only_what_was_asked_for_may_come() -> None:
    intake = Intake(0)
    intake.announce([announced(1)], 1)
    with pytest.raises(ProtocolError, match="not asked"):
        intake.chunk(1, Piece.of(0, b"x"))
    record = intake.next()
    assert record is not None
    ask(intake, record)
    assert not intake.chunk(1, Piece.of(0, b"x" * 60))
    assert intake.chunk(1, Piece.of(60, b"x" * 40))
    intake.ended(1)
    with pytest.raises(ProtocolError, match="not asked"):
        intake.chunk(1, Piece.of(0, b"x"))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_the_safe_cursor_never_passes_an_unfinished_record(data: st.DataObject) -> None:
    intake = Intake(0)
    unfinished: set[int] = set()
    last = head = 0
    for _ in range(data.draw(st.integers(1, 30))):
        if unfinished and data.draw(st.booleans()):
            cursor = data.draw(st.sampled_from(sorted(unfinished)))
            unfinished.remove(cursor)
            safe = intake.finish(cursor)
        else:
            steps = data.draw(st.lists(st.integers(1, 3), max_size=4))
            batch = []
            for step in steps:
                last = max(last, head) + step
                head = last
                batch.append(announced(last))
            head += data.draw(st.integers(0, 2))
            intake.announce(batch, head)
            unfinished.update(record.cursor for record in batch)
            safe = intake.safe_cursor
        assert safe == intake.safe_cursor == (min(unfinished) - 1 if unfinished else head)
