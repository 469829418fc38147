"""What the state machines and the contract say twice must be the same."""

from __future__ import annotations

from fogline.common.images.forms import Form
from fogline.common.metrics import UPLINK_FORMS
from fogline.common.rpc import channel, overhead
from fogline.common.rpc.gen import images_pb2, transfer_pb2
from fogline.common.wire import transfer, upload


def test_reasons_are_the_contracts() -> None:
    named = {f"REJECT_REASON_{reason.name}": reason.value for reason in upload.Reason}
    assert {"REJECT_REASON_UNSPECIFIED": 0, **named} == dict(images_pb2.RejectReason.items())


def test_forms_are_the_contracts() -> None:
    named = {f"UPLINK_FORM_{form.name}": form.value for form in Form}
    assert {"UPLINK_FORM_UNSPECIFIED": 0, **named} == dict(images_pb2.UplinkForm.items())
    assert tuple(form.text for form in Form) == UPLINK_FORMS


def test_every_chunk_and_every_pack_fits_into_a_message() -> None:
    piece = transfer.Piece(2**63, bytes(transfer.MAX_CHUNK_BYTES), 2**32 - 1)
    chunk = transfer_pb2.Chunk(offset=piece.offset, data=piece.data, crc32=piece.crc32)
    largest = images_pb2.UploadRequest(chunk=images_pb2.UploadChunk(content_id=bytes(32), chunk=chunk))
    assert largest.ByteSize() < channel.MAX_MESSAGE
    empty = transfer_pb2.Chunk(offset=2**63, data=b"", crc32=1)
    small = images_pb2.FetchResponse(chunks=[images_pb2.FetchedChunk(shared_digest=bytes(32), chunk=empty)])
    assert small.ByteSize() <= transfer.PACK_OVERHEAD


def test_every_rejection_and_offer_fits_into_the_window() -> None:
    assert upload.WINDOW_BYTES >= 2 * transfer.MAX_CHUNK_BYTES
    assert overhead.WINDOW >= channel.MAX_MESSAGE
