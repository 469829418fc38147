"""What subscribers are told, and when."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fogline.fog_node.store import Notice
from fogline.fog_node.subscription import HEAD_INTERVAL_S, Filter, Subscription


def notice(cursor: int, *, own: bool = False, camera: str = "c", labels: frozenset[str] = frozenset()) -> Notice:
    return Notice(cursor, bytes(32), 10, camera, labels, own, ())


def test_filters() -> None:
    seen = notice(1, camera="north", labels=frozenset({"cat", "dog"}))
    assert Filter().admits(seen)
    assert Filter(frozenset({"dog", "cow"}), frozenset({"north"})).admits(seen)
    assert not Filter(frozenset({"cow"})).admits(seen)
    assert not Filter(cameras=frozenset({"south"})).admits(seen)
    assert not Filter(frozenset({"cat"})).admits(notice(1, camera="north"))
    assert not Filter().admits(notice(1, own=True))


def test_a_caught_up_subscriber_is_told_so_at_once_and_progress_without_news_is_held_back() -> None:
    subscription = Subscription(Filter(), 7)
    assert subscription.scan([], 0.0) is None
    assert subscription.head_due_at() == float("-inf")
    assert subscription.head_update(0.0).head == 7
    assert subscription.head_due_at() is None
    assert subscription.scan([notice(8, own=True), notice(9, own=True)], 1.0) is None
    assert subscription.head_due_at() == HEAD_INTERVAL_S
    update = subscription.scan([notice(10)], 1.1)
    assert update is not None
    assert (update.head, [n.cursor for n in update.notices]) == (10, [10])
    assert subscription.head_due_at() is None


@given(st.lists(st.tuples(st.integers(1, 5), st.booleans()), max_size=50), st.integers(1, 7))
def test_every_head_is_safe_to_resume_from(steps: list[tuple[int, bool]], page: int) -> None:
    """A device that goes on from any head it was told misses nothing that concerns it."""
    cursor, log = 0, []
    for gap, own in steps:
        cursor += gap
        log.append(notice(cursor, own=own))
    subscription = Subscription(Filter(), 0)
    told: list[int] = []
    for start in range(0, len(log), page):
        update = subscription.scan(log[start : start + page], 0.0)
        if update is not None:
            told += [n.cursor for n in update.notices]
            assert told == [n.cursor for n in log if not n.own and n.cursor <= update.head]
    assert subscription.head_update(0.0).head == cursor
    assert told == [n.cursor for n in log if not n.own]
