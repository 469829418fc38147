"""The model registry: versions, resuming, limits, and what a restart finds."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from fogline.cloud_server.config import ModelsConfig
from fogline.cloud_server.models import ModelStore, Version
from fogline.common.errors import CapacityError, InputError, ProtocolError

from .models_for_tests import file_of, model


def digest_of(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def publish(store: ModelStore, name: str, data: bytes, device: str = "cam", time_us: int = 5) -> Version:
    digest = digest_of(data)
    found = store.begin(name, digest, len(data))
    if isinstance(found, Version):
        return found
    if found < len(data):
        store.append(digest, found, data[found:], len(data))
    return store.finish(name, digest, device, time_us)


def test_versions_count_from_one_and_the_same_bytes_are_one_version(tmp_path: Path) -> None:
    store = ModelStore(tmp_path, ModelsConfig())
    first, second = model(1), model(2)
    assert publish(store, "detector", first) == Version("detector", 1, digest_of(first), len(first), "cam", 5)
    assert publish(store, "detector", second).version == 2
    assert publish(store, "detector", first, "other").version == 1
    assert publish(store, "other", first).version == 1  # without sending it again
    assert store.totals() == (3, len(first) + len(second))
    latest = store.latest("detector")
    assert latest is not None
    assert latest.version == 2
    assert store.latest("nothing") is None
    assert [v.version for v in store.newer({"detector": 1, "other": 1, "nothing": 0})] == [2]
    path, size = store.open_for_reading(digest_of(second))
    assert path.read_bytes() == second
    assert size == len(second)


def test_it_goes_on_after_a_restart(tmp_path: Path) -> None:
    data = model(3)
    store = ModelStore(tmp_path, ModelsConfig())
    publish(store, "m", model(1))
    assert store.begin("m", digest_of(data), len(data)) == 0
    store.append(digest_of(data), 0, data[:100], len(data))
    store.close()
    store = ModelStore(tmp_path, ModelsConfig())
    assert store.begin("m", digest_of(data), len(data)) == 100
    assert publish(store, "m", data).version == 2


def test_bytes_without_a_row_are_cleared(tmp_path: Path) -> None:
    """A crash between the commit of the bytes and the row."""
    store = ModelStore(tmp_path, ModelsConfig())
    store._blobs.put(model(1))
    store.close()
    assert ModelStore(tmp_path, ModelsConfig()).totals() == (0, 0)


def test_old_versions_make_room(tmp_path: Path) -> None:
    store = ModelStore(tmp_path, ModelsConfig(keep_versions=2))
    publish(store, "kept", model(0))
    for seed in range(5):
        publish(store, "m", model(seed))
    assert store.totals()[0] == 3
    store.open_for_reading(digest_of(model(0)))  # under another name, still
    with pytest.raises(InputError, match="no model has the digest"):
        store.open_for_reading(digest_of(model(1)))
    assert publish(store, "m", model(9)).version == 6


def test_what_is_refused(tmp_path: Path) -> None:
    store = ModelStore(tmp_path, ModelsConfig(max_bytes=1000, quota_bytes=1500))
    good = model(1)
    for name in ("", "A", "a/b", "x" * 65, "a\n"):
        with pytest.raises(InputError, match="model name"):
            store.begin(name, digest_of(good), len(good))
    with pytest.raises(InputError, match="digest of 3 bytes"):
        store.begin("m", b"abc", 5)
    for size in (0, 1001):
        with pytest.raises(InputError, match=r"models\.max_bytes"):
            store.begin("m", digest_of(good), size)
    junk = file_of({}, b"excess")
    with pytest.raises(InputError, match="holds 6 bytes"):
        publish(store, "m", junk)
    wrong = digest_of(b"other")
    store.begin("m", wrong, 5)
    store.append(wrong, 0, b"wrong", 5)
    with pytest.raises(ProtocolError, match="don't match"):
        store.finish("m", wrong, "cam", 0)
    assert store.totals() == (0, 0)
    store.begin("m", digest_of(good), 900)
    with pytest.raises(CapacityError, match="quota"):
        store.begin("m", wrong, 900)
    with pytest.raises(InputError, match="65 models"):
        store.newer({str(i): 0 for i in range(65)})


class Machine(RuleBasedStateMachine):
    """Any order of offers, pieces, repeats and restarts gives each name its bytes in the order they were finished."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root
        self.store = ModelStore(root, ModelsConfig())
        self.expected: dict[str, list[bytes]] = {"a": [], "b": []}

    @rule(name=st.sampled_from("ab"), seed=st.integers(0, 5), stop=st.integers(0, 500))
    def send_some(self, name: str, seed: int, stop: int) -> None:
        data = model(seed, 200)
        digest = digest_of(data)
        found = self.store.begin(name, digest, len(data))
        if isinstance(found, Version):
            assert self.expected[name][found.version - 1] == data
            return
        piece = data[found : found + stop]
        if piece:
            self.store.append(digest, found, piece, len(data))
        if found + len(piece) == len(data):
            self.expected[name].append(data)
            assert self.store.finish(name, digest, "cam", 0).version == len(self.expected[name])

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.store = ModelStore(self.root, ModelsConfig())

    @invariant()
    def agrees(self) -> None:
        for name, held in self.expected.items():
            latest = self.store.latest(name)
            assert (latest.version, latest.digest) == (len(held), digest_of(held[-1])) if latest else held == []

    def teardown(self) -> None:
        self.store.close()


def test_against_a_model(tmp_path: Path) -> None:
    count = iter(range(1_000_000))
    run_state_machine_as_test(
        lambda: Machine(tmp_path / str(next(count))),
        settings=settings(max_examples=15, stateful_step_count=12, deadline=None),
    )


def test_tenants_have_models_of_their_own(tmp_path: Path) -> None:
    store = ModelStore(tmp_path, ModelsConfig())
    data = model(1)
    digest = hashlib.sha256(data).digest()

    def publish_for(tenant: str, content: bytes) -> int:
        made = hashlib.sha256(content).digest()
        begin = store.begin("detector", made, len(content), tenant)
        assert isinstance(begin, int)
        store.append(made, begin, content[begin:], len(content))
        found = store.finish("detector", made, "cam", 5, tenant)
        assert found.name == "detector"
        return found.version

    assert publish_for("acme", data) == 1
    assert store.latest("detector") is store.latest("detector", "other") is None
    assert store.latest("acme/detector") is None
    found = store.latest("detector", "acme")
    assert found is not None
    assert found.digest == digest
    assert store.newer({"detector": 0}) == []
    assert len(store.newer({"detector": 0}, "acme")) == 1
    for tenant in ("", "other"):
        with pytest.raises(InputError, match="no model has the digest"):
            store.open_for_reading(digest, tenant)
        with pytest.raises(InputError, match="held for another tenant"):
            store.begin("detector", digest, len(data), tenant)
    more = model(2)
    part = hashlib.sha256(more).digest()
    store.append(part, int(str(store.begin("detector", part, len(more), "acme"))), more[:9], len(more))
    assert store.begin("detector", part, len(more), "acme") == 9
    assert store.begin("detector", part, len(more), "other") == 0  # what acme sent is no help
    store.close()
    store = ModelStore(tmp_path, ModelsConfig())  # nobody knows now whose the rest was
    store.append(part, int(str(store.begin("detector", part, len(more)))), more[:5], len(more))
    assert store.begin("detector", part, len(more)) == 5
    assert publish_for("", more) == 1
    store.close()
