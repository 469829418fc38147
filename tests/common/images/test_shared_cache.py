"""What a decoder keeps of shared state: budgets, kinds, and threads that want the same."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fogline.common.errors import FormatError
from fogline.common.images.codec import SharedBlobs
from fogline.common.images.shared_cache import SharedCache


def making(made: list[str], name: str, size: int = 10) -> Callable[[], torch.Tensor]:
    def make() -> torch.Tensor:
        made.append(name)
        return torch.zeros(size, dtype=torch.uint8)

    return make


def test_the_least_recently_used_goes_first_and_the_budget_holds() -> None:
    cache, made = SharedCache(25), list[str]()
    for name in "abacab":
        cache.decoded(name, making(made, name))
        assert cache.held_bytes <= 25
    assert made == ["a", "b", "c", "b"]  # c took the place of b, which was used before a


def test_what_is_larger_than_the_budget_is_made_and_not_kept() -> None:
    cache, made = SharedCache(5), list[str]()
    for _ in range(2):
        assert len(cache.decoded("a", making(made, "a"))) == 10
    assert made == ["a", "a"]
    assert cache.held_bytes == 0


def test_threads_that_want_the_same_have_it_made_once() -> None:
    cache, made, start = SharedCache(), list[str](), threading.Barrier(8)

    def want(_: int) -> torch.Tensor:
        start.wait(timeout=30)
        return cache.decoded("a", making(made, "a", 1 << 20))

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(want, range(8)))
    assert made == ["a"]
    assert all(one is found[0] for one in found)


def test_what_failed_is_tried_again() -> None:
    cache, made = SharedCache(), list[str]()

    def fail() -> torch.Tensor:
        raise FormatError("damaged")

    for _ in range(2):
        with pytest.raises(FormatError, match="damaged"):
            cache.decoded("a", fail)
    assert len(cache.decoded("a", making(made, "a"))) == 10


class Weights:
    """What another codec would make of a blob."""

    def __init__(self, blob: bytes) -> None:
        self.blob = blob


class Picture(Weights):
    """What one codec makes of it."""


def test_two_kinds_of_one_blob_do_not_mix() -> None:
    blobs = SharedBlobs({b"d": b"blob"}, [b"d"], SharedCache())
    picture = blobs.open(0, "picture", Picture)
    weights = blobs.open(0, "weights", Weights)
    assert (type(picture), type(weights)) == (Picture, Weights)
    assert blobs.open(0, "picture", Picture) is picture
