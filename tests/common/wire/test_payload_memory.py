from __future__ import annotations

import ctypes
import gc

import pytest

from fogline.common.wire.memory import HUGE_PAGE, MAPPED, PayloadMemory

LARGE = 3 * MAPPED


def address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def test_memory_is_used_again_once_its_last_view_is_gone():
    memory = PayloadMemory()
    first = memory.take(LARGE)
    place, part = address(first), first[100:200]
    gc.collect()
    del first
    assert address(memory.take(LARGE)) != place  # a part of it is still looked at
    part[:] = bytes(100)
    del part
    gc.collect()
    taken = {address(memory.take(LARGE)) for _ in range(2)}
    assert place in taken


def test_a_view_that_goes_through_other_hands_keeps_its_memory():
    torch = pytest.importorskip("torch")
    memory = PayloadMemory()
    view = memory.take(LARGE)
    tensor = torch.frombuffer(view, dtype=torch.uint8)[10:20]
    del view
    gc.collect()
    tensor.fill_(7)
    other = memory.take(LARGE)
    other[:] = bytes(LARGE)
    assert tensor.tolist() == [7] * 10


@pytest.mark.parametrize("size", [0, 1, MAPPED - 1, MAPPED, MAPPED + 1, HUGE_PAGE, 5 * HUGE_PAGE + 3])
def test_memory_is_of_the_size_that_was_asked_for_and_writable(size):
    view = PayloadMemory().take(size)
    assert view.nbytes == size
    view[:] = b"x" * size


def test_no_more_is_kept_than_allowed():
    memory = PayloadMemory(keep_bytes=4 * HUGE_PAGE)
    held = [memory.take(2 * HUGE_PAGE) for _ in range(5)]
    assert sum(map(len, memory._kept)) <= 4 * HUGE_PAGE
    for number, view in enumerate(held):
        view[:] = bytes([number]) * len(view)
    assert [view[0] for view in held] == list(range(5))
    memory.clear()
    assert held[4][-1] == 4


def test_a_small_payload_does_not_hold_a_large_memory():
    memory = PayloadMemory()
    memory.take(64 << 20)
    memory.take(MAPPED)
    assert sorted(map(len, memory._kept)) == [HUGE_PAGE, 64 << 20]
