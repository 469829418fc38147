"""Tenants share a fog node and see nothing of each other; nobody gets what its filter leaves out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fog_helpers import Device, Fog, Shot, shots, until

from fogline.common.boxes import Box
from fogline.common.errors import InputError
from fogline.common.rpc.gen import images_pb2 as pb
from fogline.common.wire.upload import Drop, MarkStored
from fogline.fog_node.audience import Audience
from fogline.fog_node.encode_queue import EncodeQueue
from fogline.fog_node.store import EncodedRecord, NewImage, QueuedImage, Store
from fogline.fog_node.subscription import Filter
from fogline.fog_node.tenants import stream


async def published(store: Store, content_id: bytes, device: str, tenant: str, shared: bytes = b"") -> None:
    """One image of a device, from upload to publication; its record is its content id again."""
    await store.add(NewImage(content_id, "cam", 5, 64, 48, 1, (Box(1, 2, 3, 4, "cat"),), tenant=tenant), device)
    record = content_id * 2
    blobs = [record, *([shared] if shared else [])]
    store.put(blobs)
    needs = ((hashlib.sha256(shared).digest(), len(shared)),) if shared else ()
    digest = hashlib.sha256(record).digest()
    await store.publish([EncodedRecord(content_id, digest, len(record), (), needs, 0.1)])


async def test_the_store_shows_a_tenant_its_own(tmp_path: Path) -> None:
    store = Store(tmp_path, None)
    await store.open()
    state = b"a picture of acme's hall"
    digest = hashlib.sha256(state).digest()
    await published(store, b"a" * 32, "cam-1", "acme", state)
    await published(store, b"b" * 32, "cam-2", "")
    for tenant, mine, other in (("acme", 1, 2), ("", 2, 1)):
        page = await store.page("viewer", 0, 10, tenant)
        assert [(notice.cursor, notice.foreign) for notice in page] == [(1, mine != 1), (2, mine != 2)]
        hidden = page[other - 1]
        assert (hidden.digest, hidden.size, hidden.camera, hidden.labels, hidden.shared) == (
            b"",
            0,
            "",
            frozenset(),
            (),
        )
        assert not Filter().admits(hidden)
        assert set(await store.records("viewer", [1, 2], tenant)) == {mine}
    assert await store.shared_sizes("viewer", [digest], "acme") == {digest: len(state)}
    assert await store.shared_sizes("viewer", [digest], "") == {}
    assert await store.shared_sizes("viewer", [digest], "acme", lambda camera, labels: camera == "other") == {}
    # The bytes of another tenant's image are no way to it.
    for call in (store.offered(b"a" * 32, "thief", ""), store.offered(b"b" * 32, "thief", "acme")):
        with pytest.raises(InputError, match="held for another tenant"):
            await call
    with pytest.raises(InputError, match="held for another tenant"):
        await store.add(NewImage(b"a" * 32, "cam", 5, 64, 48, 1, (), tenant="other"), "thief")
    assert await store.sources([b"a" * 32]) == {"cam-1"}
    store.close()


async def test_what_another_tenant_began_to_send_is_no_help(tmp_path: Path) -> None:
    store = Store(tmp_path, None)
    await store.open()
    assert not await store.arriving(b"d" * 32, "acme")  # perhaps from the default tenant
    assert await store.arriving(b"d" * 32, "acme")
    assert not await store.arriving(b"d" * 32, "other")
    assert not await store.arriving(b"d" * 32, "")
    assert await store.arriving(b"d" * 32, "")
    await store.forget_arriving(0.0)
    store.close()


def test_cameras_of_one_name_are_kept_apart() -> None:
    assert stream("acme", "cam") not in (stream("", "cam"), stream("", "acme/cam"), stream("other", "cam"))
    queue = EncodeQueue(8, 0.0, 320, by_camera=True)
    images = [QueuedImage(bytes([n]) * 32, "cam", 0, 64, 48, (), tenant=tenant) for n, tenant in enumerate(("", "a"))]
    queue.add(images, 0.0)
    batches = [queue.take(1.0), queue.take(1.0)]
    assert [len(batch.images) for batch in batches if batch] == [1, 1]


def test_receivers_are_of_the_tenant() -> None:
    audience = Audience()
    audience.joined("a", Filter(), "acme")
    audience.joined("b", Filter())
    for tenant in ("acme", ""):
        assert audience.receivers([QueuedImage(b"i" * 32, "cam", 0, 9, 9, (), tenant=tenant)], []) == 1


def test_two_tenants_on_one_fog_node(start_fog: Callable[..., Fog], certificates: Any) -> None:
    fog = start_fog()
    connected: list[Device] = []

    def device(name: str, tenant: str) -> Device:
        connected.append(Device(fog.address, name, certificates.tls(name, "edge", tenant=tenant)))
        return connected[-1]

    try:
        acme, acme_viewer, other = device("a-1", "acme"), device("a-2", "acme"), device("o-1", "other")
        images = [*shots(2), Shot(shots(1, 2)[0].data, camera="door")]
        assert all(isinstance(step, MarkStored) for step in acme.upload(images).values())
        until(lambda: fog.metric("fogline_published_head") >= 3, what="publication")
        notices = acme_viewer.notices(3)
        assert len(notices) == 3
        assert len(acme_viewer.records(notices)) == 3
        assert other.notices(3) == []  # told only how far the log is
        assert other.records(notices) == {}
        # The same bytes: refused, and nothing of the other's is told.
        (refused,) = other.upload(images[:1]).values()
        assert isinstance(refused, Drop)
        assert "another tenant" in refused.detail
        assert other.records(notices) == {}
        # What its own filter leaves out is gone for a device.
        narrow = device("a-3", "acme")
        (door,) = narrow.notices(3, cameras=["door"])
        assert set(narrow.records(notices)) == {door.cursor}
        answers = narrow.fetch([pb.FetchItem(cursor=n.cursor) for n in notices])
        assert sum(part.gone for answer in answers for part in answer.chunks) == 2
    finally:
        for one in connected:
            one.close()
