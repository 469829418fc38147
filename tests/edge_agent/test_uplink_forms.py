"""What is sent of an image: what the fog node advises or the operator says; as captured where nobody says more."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from edge_helpers import jpeg, until
from edge_parts import parts
from PIL import Image
from scripted_fog import ScriptedFog, serving

from fogline.common.errors import UnavailableError
from fogline.common.images.forms import CODED_FORMS, Form
from fogline.common.images.uplink import decode
from fogline.common.rpc.gen import images_pb2 as pb
from fogline.common.rpc.retry import Backoff
from fogline.common.wire.upload import CORRUPT_TRIES
from fogline.edge_agent.config import UplinkConfig
from fogline.edge_agent.outbox import Item, Outbox
from fogline.edge_agent.uplink import Transcoder, Upload

LARGE = (320, 240)


def advising(form: Form, width: int = 64, accepts: tuple[Form, ...] = CODED_FORMS) -> ScriptedFog:
    fog = ScriptedFog()
    number = pb.UplinkForm.ValueType
    fog.hello = {
        "uplink": pb.UplinkAdvice(
            coded_width=width, accepts=[number(f.value) for f in accepts], advises=number(form.value)
        )
    }
    return fog


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


@pytest.mark.parametrize("form", list(Form))
def test_an_edge_sends_what_the_fog_node_advises(tmp_path: Path, form: Form) -> None:
    fog = advising(form)
    with serving(fog), parts(tmp_path, fog, run="upload") as edge:
        images = edge.add(*range(5), size=LARGE)
        until(lambda: edge.outbox.count == 0)
        assert edge.uploader.form is form
        assert set(fog.stored) == {sha(image) for image in images}  # the identity stays that of the captured JPEG
        for offer in fog.offers:
            data = fog.stored[offer.content_id]
            found = decode(form, data, offer.content_id)
            assert found.source_size == LARGE
            assert offer.size == len(data)
            assert (offer.boxes[0].x, offer.boxes[0].label) == (1, "car")  # in pixels of the captured frame
            if form is Form.ORIGINAL:
                assert (offer.form, offer.digest) == (0, b"")  # byte for byte what an older edge sends
                assert data in images
            else:
                assert (offer.form, offer.digest) == (form.value, sha(data))
                assert found.pixels.shape == (48, 64, 3)
        assert edge.outbox.totals() == {"captured": 5, "stored": 5}


@pytest.mark.parametrize("form", ["auto", "roi", "original"])
def test_a_fog_node_of_before_gets_jpegs(tmp_path: Path, form: Literal["auto", "roi", "original"]) -> None:
    fog = ScriptedFog()
    with serving(fog), parts(tmp_path, fog, run="upload", uplink=UplinkConfig(form=form)) as edge:
        images = edge.add(1, 2, size=LARGE)
        until(lambda: edge.outbox.count == 0)
        assert set(fog.stored.values()) == set(images)
        assert {(offer.form, offer.digest) for offer in fog.offers} == {(0, b"")}


def test_the_operator_s_form_wins_where_it_is_taken(tmp_path: Path) -> None:
    fog = advising(Form.ROI, accepts=(Form.ROI, Form.AVIF))
    with serving(fog):
        with parts(tmp_path / "a", fog, run="upload", uplink=UplinkConfig(form="avif")) as edge:
            edge.add(1, size=LARGE)
            until(lambda: edge.outbox.count == 0)
        with parts(tmp_path / "b", fog, run="upload", uplink=UplinkConfig(form="resized")) as edge:
            (image,) = edge.add(2, size=LARGE)
            until(lambda: edge.outbox.count == 0)
    assert [offer.form for offer in fog.offers] == [Form.AVIF.value, 0]
    assert image in fog.stored.values()


def test_a_form_of_the_future_is_not_sent(tmp_path: Path) -> None:
    fog = ScriptedFog()
    fog.hello = {"uplink": pb.UplinkAdvice(coded_width=64, accepts=[77], advises=77)}  # type: ignore[list-item, arg-type]
    with serving(fog), parts(tmp_path, fog, run="upload") as edge:
        images = edge.add(1, size=LARGE)
        until(lambda: edge.outbox.count == 0)
        assert list(fog.stored.values()) == images


def test_a_broken_stream_resumes_within_a_coded_form(tmp_path: Path) -> None:
    fog = advising(Form.RESIZED, width=320)
    fog.hello["max_chunk_bytes"] = 4096
    fog.break_after = 2
    with serving(fog), parts(tmp_path, fog, run="upload") as edge:
        (image,) = edge.add(1, size=(640, 480))
        until(lambda: edge.outbox.count == 0)
        assert fog.resumed_at == [0, 2 * 4096]
        assert len({offer.digest for offer in fog.offers}) == 1  # made anew, the same bytes
        decode(Form.RESIZED, fog.stored[sha(image)], sha(image))


def test_a_restarted_agent_goes_on_where_the_one_before_was(tmp_path: Path) -> None:
    fog = advising(Form.AVIF, width=320)
    fog.hello["max_chunk_bytes"] = 4096
    fog.break_after = 1
    fog.clock = lambda: 1_800_000_000_000_000
    with serving(fog):
        with parts(tmp_path, fog, run="upload") as edge:
            (image,) = edge.add(1, size=(640, 480))
            until(lambda: fog.break_after is None)
            fog.on_offer = lambda offer: pb.UploadResponse(
                rejected=pb.UploadRejected(content_id=offer.content_id, reason=pb.REJECT_REASON_NO_SPACE)
            )
            until(lambda: len(fog.offers) > 1)
        fog.on_offer = lambda offer: None
        with parts(tmp_path, fog, run="upload") as edge:
            until(lambda: edge.outbox.count == 0)
    assert fog.resumed_at[-1] == 4096
    decode(Form.AVIF, fog.stored[sha(image)], sha(image))


def test_what_can_not_be_made_or_would_be_larger_goes_as_captured(tmp_path: Path) -> None:
    fog = advising(Form.AVIF, width=640)
    with serving(fog), parts(tmp_path, fog, run="upload", uplink=UplinkConfig(avif_quality=100)) as edge:
        damaged = jpeg(1, LARGE)[:900]
        edge.add(1, data=damaged)
        until(lambda: edge.outbox.count == 0)
        (small,) = edge.add(2, data=_poor(LARGE))  # nothing to resize, and finer than it is
        until(lambda: edge.outbox.count == 0)
    assert set(fog.stored.values()) == {damaged, small}
    assert {offer.form for offer in fog.offers} == {0}


def test_advice_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    fog = advising(Form.ROI, width=0)
    with serving(fog), parts(tmp_path, fog, run="upload") as edge:
        edge.add(1, size=LARGE)
        until(lambda: "0 pixels wide" in edge.link.error)
        fog.hello = advising(Form.ROI).hello
        until(lambda: edge.outbox.count == 0)


def test_a_fog_node_that_changes_its_mind_gets_the_other_form(tmp_path: Path) -> None:
    fog = advising(Form.ROI)
    with serving(fog) as server, parts(tmp_path, fog, run="upload") as edge:
        edge.add(1, size=LARGE)
        until(lambda: edge.outbox.count == 0)
        fog.hello = advising(Form.AVIF).hello
        server.stop()
        server.start()
        edge.add(2, size=LARGE)
        until(lambda: edge.outbox.count == 0)
        assert edge.uploader.form is Form.AVIF
    assert [offer.form for offer in fog.offers] == [Form.ROI.value, Form.AVIF.value]


def refusing(reason: int, **fields: bool) -> Callable[[pb.ImageOffer], pb.UploadResponse | None]:
    number = pb.RejectReason.ValueType(reason)

    def answer(offer: pb.ImageOffer) -> pb.UploadResponse | None:
        rejected = pb.UploadRejected(content_id=offer.content_id, reason=number, detail="not so", **fields)
        return pb.UploadResponse(rejected=rejected) if offer.form else None

    return answer


@pytest.mark.parametrize("said", [{"form": True}, {}])  # a fog node of before does not say
@pytest.mark.parametrize("form", CODED_FORMS)
def test_a_refused_form_costs_no_image(
    tmp_path: Path, form: Form, said: dict[str, bool], caplog: pytest.LogCaptureFixture
) -> None:
    fog = advising(form)
    fog.on_offer = refusing(pb.REJECT_REASON_INVALID, **said)
    with serving(fog), parts(tmp_path, fog, run="upload") as edge:
        images = edge.add(*range(5), size=LARGE)
        until(lambda: edge.outbox.count == 0)
        assert set(fog.stored.values()) == set(images)
        assert edge.outbox.totals() == {"captured": 5, "stored": 5}
        assert edge.uploader.form is Form.ORIGINAL
        edge.add(7, size=LARGE)
        until(lambda: edge.outbox.count == 0)
    assert fog.offers[0].form == form.value
    assert fog.offers[-1].form == 0
    assert sum("refused form" in message for message in caplog.messages) == 1


def test_a_refused_image_is_not_sent_in_another_form(tmp_path: Path) -> None:
    fog = advising(Form.ROI)
    fog.on_offer = refusing(pb.REJECT_REASON_INVALID, form=False)
    with serving(fog), parts(tmp_path, fog, run="upload") as edge:
        (image,) = edge.add(1, size=LARGE)
        until(lambda: edge.outbox.count == 0)
        assert edge.outbox.rejected() == [(sha(image), "not so")]
        assert edge.uploader.form is Form.ROI
    assert [offer.form for offer in fog.offers] == [Form.ROI.value]


def test_an_image_whose_form_comes_damaged_goes_as_captured_and_the_next_in_its_form(tmp_path: Path) -> None:
    fog = advising(Form.AVIF)
    fog.on_offer = refusing(pb.REJECT_REASON_CORRUPT, form=False)
    with serving(fog), parts(tmp_path, fog, run="upload") as edge:
        (image,) = edge.add(1, size=LARGE)
        until(lambda: edge.outbox.count == 0)
        fog.on_offer = lambda offer: None
        edge.add(2, size=LARGE)
        until(lambda: edge.outbox.count == 0)
        assert edge.outbox.totals() == {"captured": 2, "stored": 2}
    assert fog.stored[sha(image)] == image
    assert [offer.form for offer in fog.offers] == [Form.AVIF.value] * CORRUPT_TRIES + [0, Form.AVIF.value]


def test_a_form_is_made_once_however_often_there_is_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bytes] = []
    make = Transcoder.make

    def counting(self: Transcoder, item: Item, data: bytes) -> Upload:
        made.append(item.content_id)
        return make(self, item, data)

    monkeypatch.setattr(Transcoder, "make", counting)
    monkeypatch.setattr("fogline.edge_agent.upload.Backoff", lambda low, high: Backoff(0.01, 0.02))
    fog = advising(Form.ROI)
    fog.on_offer = refusing(pb.REJECT_REASON_NO_SPACE, form=False)
    with serving(fog), parts(tmp_path, fog, run="upload") as edge:
        images = edge.add(1, 2, size=LARGE)
        until(lambda: len(fog.offers) >= 6)
        fog.on_offer = lambda offer: None
        until(lambda: edge.outbox.count == 0)
        assert sorted(made) == sorted(map(sha, images))
    assert {offer.form for offer in fog.offers} == {Form.ROI.value}


def test_an_image_that_can_not_be_read_is_a_named_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made outside the stream's own error handling, it would end the stream with gRPC's words and not with ours."""
    fog = advising(Form.ROI)
    failures = [UnavailableError("the card has gone")]
    read = Outbox.read

    def flaky(self: Outbox, content_id: bytes) -> bytes:
        if failures:
            raise failures.pop()
        return read(self, content_id)

    monkeypatch.setattr(Outbox, "read", flaky)
    with serving(fog), parts(tmp_path, fog, run="upload") as edge:
        failed: list[str] = []
        told = edge.link.failed
        monkeypatch.setattr(
            edge.link, "failed", lambda session, error: (failed.append(str(error)), told(session, error))
        )
        edge.add(1, size=LARGE)
        until(lambda: edge.outbox.count == 0)
        assert failed == ["the card has gone"]


def _poor(size: tuple[int, int]) -> bytes:
    out = io.BytesIO()
    Image.open(io.BytesIO(jpeg(2, size))).save(out, "JPEG", quality=30)
    return out.getvalue()
