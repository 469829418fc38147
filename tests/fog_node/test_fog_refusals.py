"""What a real fog node process refuses, from devices and from its operator, and goes on after."""

from __future__ import annotations

import io
from typing import Any

import pytest
from fog_helpers import Fog, Shot, chunk, interactive, picture, shots, stored
from PIL import Image

from fogline.common.errors import ConfigError, IdentityError, ProtocolError
from fogline.common.images.container import from_bytes
from fogline.common.rpc.gen import images_pb2 as pb
from fogline.common.rpc.status import translate
from fogline.common.wire.upload import Drop, MarkStored
from fogline.fog_node.stats import read_images


def test_a_wrong_store_id_is_refused(start_fog: Any, device: Any, monkeypatch: Any) -> None:
    a = device(start_fog(), "a")
    monkeypatch.setattr(a, "hello", lambda: pb.HelloResponse(store_id=bytes(16)))
    with pytest.raises(ConfigError, match="call Hello"):
        a.notices(upto=0)


def test_only_edges_are_served(start_fog: Any, device: Any) -> None:
    fog = start_fog()
    for role in ("fog", "cloud"):
        stranger = device(fog, "stranger", role)
        with pytest.raises(IdentityError, match=role):
            stranger.hello()
        with pytest.raises(IdentityError, match=role):
            stranger.upload(shots(1))
        with pytest.raises(IdentityError, match=role):
            stranger.fetch([pb.FetchItem(cursor=1)])
        with pytest.raises(IdentityError, match=role), translate():
            list(stranger.stub.Subscribe(pb.SubscribeRequest()))


def jpeg(image: Image.Image, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, settings.pop("format", "JPEG"), **settings)
    return buffer.getvalue()


def bad_pictures() -> dict[str, bytes]:
    whole = picture(1)
    return {
        "truncated": whole[: len(whole) // 2],
        "cut by a byte": whole[:-1],
        "no picture": b"hello world",
        "png": jpeg(Image.new("RGB", (32, 32)), format="PNG"),
        "bomb": jpeg(Image.new("L", (10_000, 10_000))),
    }


def test_bad_images_are_refused_by_name_and_the_rest_goes_on(start_fog: Any, device: Any) -> None:
    fog = start_fog()
    a = device(fog, "a")
    bad = {name: Shot(data, ()) for name, data in bad_pictures().items()}
    good = shots(3)
    outcomes = a.upload([good[0], *bad.values(), *good[1:]])
    for name, shot in bad.items():
        outcome = outcomes[shot.content_id]
        assert isinstance(outcome, Drop), name
        assert outcome.detail, name
    assert all(outcomes[s.content_id] == stored(s) for s in good)
    assert not list((fog.data_dir / "blobs" / "partial").iterdir())
    assert {s.content_id for s in read_images(fog.data_dir)} == {s.content_id for s in good}


def test_odd_but_valid_images_are_taken(start_fog: Any, device: Any) -> None:
    fog = start_fog()
    a, b = device(fog, "a"), device(fog, "b")
    base = Image.open(io.BytesIO(picture(1)))
    exif = Image.Exif()
    exif[0x0112] = 6
    odd = [
        jpeg(base, progressive=True),
        jpeg(base.convert("CMYK")),
        jpeg(base.convert("L")),
        jpeg(base, exif=exif),
        jpeg(Image.new("RGB", (1, 1))),
        jpeg(Image.new("RGB", (3, 700))),
    ]
    images = [Shot(data, ()) for data in odd]
    assert all(isinstance(o, MarkStored) for o in a.upload(images).values())
    assert len(b.records(b.notices(upto=len(odd)))) == len(odd)


INF = float("inf")
BAD_BOXES = [
    (float("nan"), 1, 5, 5),
    (1, INF, 5, 5),
    (1, 1, 0, 5),
    (1, 1, -4, 5),
    (150, 1, 40, 5),
    (-50, -50, 4, 4),
]


def test_boxes_are_checked(start_fog: Any, device: Any) -> None:
    fog = start_fog(limits__max_boxes=200)
    a, b = device(fog, "a"), device(fog, "b")
    bad = [Shot(picture(n), ((*box, "x"),)) for n, box in enumerate(BAD_BOXES)]
    bad.append(Shot(picture(50), ((1, 1, 5, 5, "l" * 65),)))
    bad.append(Shot(picture(51), ((1.0, 1.0, 5.0, 5.0, "x"),) * 201))
    bad.append(Shot(picture(52), camera=""))
    bad.append(Shot(picture(53), camera="c" * 65))
    bad.append(Shot(picture(54), capture_us=2**63))
    outcomes = a.upload(bad)
    assert all(isinstance(outcomes[s.content_id], Drop) for s in bad), outcomes
    good = [
        Shot(picture(60), tuple((float(n % 40), float(n // 40), 20.0, 20.0, f"l{n}") for n in range(200))),
        Shot(picture(61), ()),
        Shot(picture(62), ((-0.5, -0.5, 160.9, 120.9, "slack"),)),
    ]
    assert a.upload(good) == {s.content_id: stored(s) for s in good}
    counts = sorted(len(from_bytes(data).boxes) for data in b.records(b.notices(upto=3)).values())
    assert counts == [0, 1, 200]


def test_protocol_violations_break_the_stream_and_nothing_else(start_fog: Any, device: Any) -> None:
    fog = start_fog()
    a = device(fog, "a")
    big = Shot(picture(1, 1600, 1200, quality=98))
    offer = pb.UploadRequest(offer=big.offer())
    wrong_crc = chunk(big, 0, 1000)
    wrong_crc.chunk.chunk.crc32 ^= 1
    oversized = chunk(big, 0, (256 << 10) + 1)
    attacks: list[list[pb.UploadRequest]] = [
        [pb.UploadRequest()],
        [chunk(big, 0, 100)],
        [offer, offer],
        [pb.UploadRequest(offer=pb.ImageOffer(content_id=b"short", size=5))],
    ]
    # Often: an answer that is being written while the stream is aborted must not leave the device hanging.
    for attack in attacks * 20:
        with pytest.raises(ProtocolError):
            a.raw_upload(attack)
    for first in (wrong_crc, oversized, chunk(big, 500, 100)):
        with pytest.raises(ProtocolError):
            interactive(a, offer, [first])
    with pytest.raises(ProtocolError):
        interactive(a, offer, [chunk(big, 0, 100), chunk(big, 0, 100)])
    sizes = [0, (32 << 20) + 1, 2**63]
    for size in sizes:
        (answer,) = a.raw_upload([pb.UploadRequest(offer=big.offer(size))])
        assert answer.rejected.reason == pb.REJECT_REASON_INVALID
    # What is claimed under the name of another image is never taken for it.
    liar, victim = Shot(picture(2)), Shot(picture(3))
    claim = pb.UploadRequest(offer=liar.offer())
    claim.offer.content_id = victim.content_id
    claim.offer.size = len(liar.data)
    data = chunk(liar, 0, len(liar.data))
    data.chunk.content_id = victim.content_id
    answers = interactive(a, claim, [data])
    assert answers[-1].rejected.reason == pb.REJECT_REASON_CORRUPT
    assert a.upload([big, victim]) == {s.content_id: stored(s) for s in (big, victim)}


def test_a_port_in_use_and_a_data_folder_in_use(start_fog: Any, tmp_path: Any, certificates: Any) -> None:
    first = start_fog()
    for settings, reason in (
        ({"listen": first.address, "data_dir": str(tmp_path / "other")}, "in use"),
        ({"listen": first.address, "data_dir": str(tmp_path / "other")}, "in use"),
        ({"data_dir": str(first.data_dir)}, "another fog node"),
        ({"data_dir": str(tmp_path / "other"), "metrics__port": first.metrics_port}, "metrics.port"),
    ):
        second = Fog(tmp_path / "second", certificates.tls("fog2", "fog"), settings)
        process = second.spawn()
        assert process.wait(20) == ConfigError.exit_code
        assert process.stdout is not None
        process.stdout.close()
        assert second.logged(reason), second.log.read_text()
    assert first.health()[0] in (200, 503)


def test_an_edge_certificate_and_a_bad_encoder_setting_are_refused(tmp_path: Any, certificates: Any) -> None:
    for tls, settings, code in (
        (certificates.tls("x", "edge"), {}, IdentityError.exit_code),
        (certificates.tls("x", "fog"), {"encoder__params": {"nonsense": 1}}, ConfigError.exit_code),
        (certificates.tls("x", "fog"), {"encoder__codec": "siren", "encoder__params": {"steps": 0}}, 2),
        (certificates.tls("x", "fog"), {"encoder__device": "tpu"}, ConfigError.exit_code),
    ):
        fog = Fog(tmp_path / "fog", tls, settings)
        process = fog.spawn()
        assert process.wait(20) == code, fog.log.read_text()
        assert process.stdout is not None
        assert process.stdout.read() == "", "it must not say that it is ready"
        process.stdout.close()
