"""The blob store: whole or absent, within its quota, resumable, and alive after kill -9 at any moment."""

from __future__ import annotations

import hashlib
import os
import random
import resource
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from fogline.common.blobs import BlobStore
from fogline.common.errors import CapacityError, FormatError, ProtocolError


def digest_of(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def test_put_get_delete(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    digest = store.put(b"leaf")
    assert store.put(memoryview(b"leaf")) == digest == digest_of(b"leaf")
    assert store.get(digest) == b"leaf"
    assert (store.size(digest), store.total_bytes, list(store.digests())) == (4, 4, [digest])
    store.delete(digest)
    store.delete(digest)
    assert not store.has(digest)
    assert store.total_bytes == 0


def test_absent_damaged_and_malformed(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    with pytest.raises(FormatError, match="is not in the store"):
        store.get(digest_of(b"x"))
    with pytest.raises(FormatError, match="is not in the store"):
        store.commit(digest_of(b"x"))
    digest = store.put(b"0123456789")
    store.path(digest).write_bytes(b"0123456780")
    with pytest.raises(FormatError, match="damaged on disk"):
        store.get(digest)
    with pytest.raises(ProtocolError, match="5 bytes"):
        store.has(b"short")


def test_quota_counts_what_is_promised(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, capacity_bytes=100)
    store.put(bytes(40))
    arriving = digest_of(b"a" * 50)
    store.append(arriving, 0, b"a", 50)
    with pytest.raises(CapacityError, match=r"40 held and 50 arriving of a quota of 100"):
        store.put(b"b" * 11)
    with pytest.raises(CapacityError, match="raise the quota"):
        store.append(digest_of(b"c" * 11), 0, b"", 11)
    store.put(b"d" * 10)
    store.append(arriving, 1, b"a" * 49, 50)
    store.commit(arriving)
    assert store.total_bytes == 100
    store.delete(arriving)
    store.put(b"e" * 50)


def test_arriving_blob_survives_reopening(tmp_path: Path) -> None:
    data = bytes(range(256)) * 40
    digest = digest_of(data)
    BlobStore(tmp_path).append(digest, 0, data[:1000], len(data))
    store = BlobStore(tmp_path, capacity_bytes=len(data))
    assert store.partial_offset(digest) == 1000
    with pytest.raises(ProtocolError, match="1000 are held"):
        store.append(digest, 0, data[:1000], len(data))
    with pytest.raises(ProtocolError, match="were announced"):
        store.append(digest, 1000, data, len(data))
    store.append(digest, 1000, data[1000:], len(data))
    store.commit(digest)
    store.commit(digest)
    assert store.get(digest) == data
    assert store.partial_offset(digest) == 0


def test_wrong_bytes_are_dropped(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, capacity_bytes=10)
    digest = digest_of(b"right")
    store.append(digest, 0, b"wrong", 5)
    with pytest.raises(ProtocolError, match="don't match"):
        store.commit(digest)
    assert store.partial_offset(digest) == 0
    store.put(b"x" * 10)  # nothing stays promised


def test_idle_arrivals_are_dropped(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    old, new = digest_of(b"old"), digest_of(b"new")
    store.append(old, 0, b"o", 3)
    store.append(new, 0, b"n", 3)
    an_hour_ago = time.time() - 3600
    os.utime(tmp_path / "partial" / old.hex(), (an_hour_ago, an_hour_ago))
    assert store.drop_partials(idle_s=1800) == 1
    assert (store.partial_offset(old), store.partial_offset(new)) == (0, 1)


def test_temp_of_a_living_writer_is_left_alone(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    path, handle = store._new_temp()
    BlobStore(tmp_path)
    assert path.exists()
    os.close(handle)  # as when the writer dies
    BlobStore(tmp_path)
    assert not path.exists()


class Model(RuleBasedStateMachine):
    """The store against a dictionary, reopened at any moment."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root
        self.capacity = 60
        self.whole: dict[bytes, bytes] = {}
        self.arriving: dict[bytes, tuple[bytes, int]] = {}
        self.store = BlobStore(root, self.capacity)

    def room(self, but: bytes = b"") -> int:
        held = sum(map(len, self.whole.values()))
        return self.capacity - held - sum(len(data) for k, (data, n) in self.arriving.items() if k != but)

    @rule(data=st.binary(max_size=30))
    def put(self, data: bytes) -> None:
        digest = digest_of(data)
        if digest not in self.whole and self.room(digest) < len(data):
            with pytest.raises(CapacityError):
                self.store.put(data)
        else:
            assert self.store.put(data) == digest
            self.whole[digest] = data

    @rule(data=st.binary(min_size=1, max_size=30), step=st.integers(1, 30))
    def receive(self, data: bytes, step: int) -> None:
        digest = digest_of(data)
        held = self.arriving.get(digest, (data, 0))[1]
        piece = data[held : held + step]
        if digest not in self.arriving and self.room() < len(data):
            with pytest.raises(CapacityError):
                self.store.append(digest, held, piece, len(data))
            return
        self.store.append(digest, held, piece, len(data))
        self.arriving[digest] = (data, held + len(piece))
        if held + len(piece) == len(data):
            self.store.commit(digest)
            del self.arriving[digest]
            self.whole[digest] = data

    @rule(pick=st.randoms())
    def delete(self, pick: random.Random) -> None:
        if self.whole:
            digest = pick.choice(sorted(self.whole))
            self.store.delete(digest)
            del self.whole[digest]

    @rule()
    def reopen(self) -> None:
        for digest, (data, held) in self.arriving.items():
            assert self.store.partial_offset(digest) == held
            self.store.append(digest, held, data[held:], len(data))
            self.store.commit(digest)
            self.whole[digest] = data
        self.arriving.clear()
        self.store = BlobStore(self.root, self.capacity)

    @invariant()
    def agrees(self) -> None:
        assert {digest: self.store.get(digest) for digest in self.store.digests()} == self.whole
        assert self.store.total_bytes == sum(map(len, self.whole.values()))


def test_against_a_model(tmp_path: Path) -> None:
    count = iter(range(1_000_000))
    run_state_machine_as_test(
        lambda: Model(tmp_path / str(next(count))),
        settings=settings(
            max_examples=25, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


@given(cuts=st.lists(st.integers(1, 999), max_size=6, unique=True))
@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_cut_of_a_blob_arrives(tmp_path: Path, cuts: list[int]) -> None:
    data = random.Random(str(cuts)).randbytes(1000)
    store = BlobStore(tmp_path)
    edges = [0, *sorted(cuts), 1000]
    for begin, end in pairwise(edges):
        store.append(digest_of(data), begin, data[begin:end], 1000)
    store.commit(digest_of(data))
    assert store.get(digest_of(data)) == data


WRITER = """
import hashlib, random, sys
from pathlib import Path
from fogline.common.blobs import BlobStore
from fogline.common.process import die_with_parent
die_with_parent()
store = BlobStore(Path(sys.argv[1]))
random.seed(int(sys.argv[2]))
print("writing", flush=True)
while True:
    data = random.randbytes(random.randrange(1, 60_000))
    if random.random() < 0.5:
        store.put(data)
    else:
        digest = hashlib.sha256(data).digest()
        for at in range(0, len(data), 7000):
            store.append(digest, at, data[at : at + 7000], len(data))
        store.commit(digest)
"""


def test_kill_nine_at_any_moment(tmp_path: Path) -> None:
    """Every blob that is there verifies, no temporary file stays, and what was arriving can go on or be dropped."""
    blobs = 0
    for life in range(8):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(life)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "writing\n"
            time.sleep(random.Random(life).uniform(0.005, 0.15))  # the moment of death, not a wait for anything
            writer.kill()
        store = BlobStore(tmp_path)
        assert list((tmp_path / "temp").iterdir()) == []
        for digest in store.digests():
            store.get(digest)
            blobs += 1
        assert store.total_bytes == sum(store.size(digest) for digest in store.digests())
    assert blobs > 0


def test_a_full_disk(small_disk: Path) -> None:
    """A real small file system: both ways of writing say what is wrong, and go on once there is room."""
    fills_up_and_recovers(BlobStore(small_disk), 5 << 20)


def test_a_file_size_limit(tmp_path: Path) -> None:
    """The same through RLIMIT_FSIZE, which needs no rights: the kernel refuses bytes past 1 MiB of a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    store = BlobStore(tmp_path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        fills_up_and_recovers(store, 3 << 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def fills_up_and_recovers(store: BlobStore, too_much: int) -> None:
    big = os.urandom(too_much)
    with pytest.raises(CapacityError, match="make room"):
        store.put(big)
    with pytest.raises(CapacityError, match="make room"):
        store.append(digest_of(big), 0, big, len(big))
    assert (
        store.partial_offset(digest_of(big)) == 0
    )  # what is half written is taken back: the sender goes on from there
    store.drop_partial(digest_of(big))
    small = os.urandom(100_000)
    assert store.get(store.put(small)) == small
    assert store.total_bytes == len(small)
