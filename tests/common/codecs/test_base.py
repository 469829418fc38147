"""The chain, its parsing, and the codecs without loss to speak of: raw, fp16, bf16."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from codec_tensors import DTYPES, FLOATS, same_bits, tensors
from hypothesis import given, settings
from hypothesis import strategies as st

from fogline.common.codecs import Chain, CodedStage, base
from fogline.common.errors import ConfigError, FormatError, InputError


def round_trip(chain: str, tensor: torch.Tensor) -> torch.Tensor:
    coder = Chain.parse(chain)
    coded = coder.encoder().encode(tensor)
    return coder.decoder().decode(coded.stages, bytes(coded.payload), coded.dtype, coded.shape)


@given(tensors(DTYPES))
def test_raw_returns_every_bit(tensor: torch.Tensor) -> None:
    back = round_trip("raw", tensor)
    assert same_bits(back, tensor)


def test_raw_copies_nothing() -> None:
    tensor = torch.arange(1000, dtype=torch.float32)
    coded = Chain.parse("raw").encoder().encode(tensor)
    assert coded.stages == ()
    assert coded.borrowed
    tensor[0] = 7.0
    assert memoryview(coded.payload)[:4] == torch.tensor([7.0]).numpy().tobytes()
    received = bytearray(coded.payload)
    back = Chain.parse("raw").decoder().decode((), received, torch.float32, (1000,))
    received[:4] = torch.tensor([9.0]).numpy().tobytes()
    assert float(back[0]) == 9.0


@pytest.mark.parametrize("chain", ["raw", "fp16"])
def test_what_is_coded_anew_is_not_borrowed(chain: str) -> None:
    tensor = torch.randn(4, 6).t()
    assert not Chain.parse(chain).encoder().encode(tensor).borrowed


def test_raw_of_a_readonly_or_unaligned_buffer() -> None:
    tensor = torch.randn(5)
    data = bytearray(1) + bytearray(tensor.numpy().tobytes())
    decoder = Chain.parse("raw").decoder()
    for buffer in (memoryview(data)[1:], bytes(data[1:])):
        back = decoder.decode((), buffer, torch.float32, (5,))
        assert torch.equal(back, tensor)
        assert back.data_ptr() % 4 == 0
        back += 1  # writable, and nobody else's where it was read-only


@given(tensors(FLOATS))
def test_fp16_keeps_within_its_bound(tensor: torch.Tensor) -> None:
    back = round_trip("fp16", tensor)
    finite = torch.isfinite(tensor)
    assert same_bits(back[~finite].isnan(), tensor[~finite].isnan())
    infinite = torch.isinf(tensor)
    assert torch.equal(back[infinite], tensor[infinite])
    x, y = tensor[finite].double(), back[finite].double()
    if x.numel():
        own = 0.0 if tensor.dtype == torch.float16 else float(torch.finfo(tensor.dtype).tiny)  # of a subnormal, coded
        bound = torch.maximum(x.abs() * 2.0**-11, x.abs().max() * 2.0**-25)
        rounding = x.abs() * float(torch.finfo(tensor.dtype).eps) + own * float(torch.finfo(tensor.dtype).eps)
        assert bool(((x - y).abs() <= bound + rounding).all())
    assert not torch.isinf(back[finite]).any()


@given(tensors(FLOATS))
def test_bf16_keeps_within_its_bound_or_refuses(tensor: torch.Tensor) -> None:
    finite = torch.isfinite(tensor)
    largest = float(tensor[finite].abs().max()) if finite.any() else 0.0
    if largest >= 2.0**127 * (2 - 2.0**-8):
        with pytest.raises(InputError, match="bfloat16"):
            round_trip("bf16", tensor)
        return
    back = round_trip("bf16", tensor)
    x, y = tensor[finite].double(), back[finite].double()
    slack = x.abs() * float(torch.finfo(tensor.dtype).eps) + 2.0**-133
    assert bool(((x - y).abs() <= x.abs() * 2.0**-8 + slack).all())
    assert same_bits(back[~finite].isnan(), tensor[~finite].isnan())


@pytest.mark.parametrize("value", [1e-30, 3e38, 65519.0, 1e-45])
def test_fp16_carries_what_half_precision_cannot(value: float) -> None:
    tensor = torch.tensor([value, -value, 0.0])
    back = round_trip("fp16", tensor)
    assert torch.allclose(back, tensor, rtol=2**-11, atol=0)


@pytest.mark.parametrize("chain", ["fp16", "bf16"])
def test_signed_zeros_come_back(chain: str) -> None:
    back = round_trip(chain, torch.tensor([0.0, -0.0]))
    assert [math.copysign(1, v) for v in back.tolist()] == [1, -1]


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8])
def test_integers_go_raw_through_a_lossy_chain(dtype: torch.dtype) -> None:
    tensor = torch.arange(6).remainder(2).to(dtype)
    coded = Chain.parse("fp16").encoder().encode(tensor)
    assert coded.stages == ()
    assert same_bits(round_trip("fp16", tensor), tensor)


def test_a_boolean_of_two_is_refused() -> None:
    with pytest.raises(FormatError, match="boolean"):
        Chain.parse("raw").decoder().decode((), b"\x00\x02", torch.bool, (2,))


@pytest.mark.parametrize("dtype", [torch.complex64])
def test_complex_tensors_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(InputError, match="dense real"):
        Chain.parse("raw").encoder().encode(torch.zeros(2, dtype=dtype))


@pytest.mark.parametrize(
    ("stages", "size"),
    [
        ((), 8),  # raw where fp16 was agreed
        ((CodedStage(3, 1, b"\x90"),), 7),
        ((CodedStage(3, 1, b"\x90"),), 9),
        ((CodedStage(3, 2, b"\x90"),), 8),
        ((CodedStage(3, 0, b"\x90"),), 8),
        ((CodedStage(4, 1, b"\x90"),), 8),
        ((CodedStage(99, 1, b"\x90"),), 8),
        ((CodedStage(3, 1, b"\x90"),) * 2, 8),
        ((CodedStage(3, 1, b""),), 8),
        ((CodedStage(3, 1, b"\xc0"),), 8),
        ((CodedStage(3, 1, b"\x91\xcd\xff\xff"),), 8),
        ((CodedStage(3, 1, b"\x92\x00\x00"),), 8),
        ((CodedStage(3, 1, b"\x91" * 70_000),), 8),
        ((CodedStage(3, 1, b"\x91" * 10_000),), 8),
    ],
)
def test_forged_frames_are_format_errors(stages: tuple[CodedStage, ...], size: int) -> None:
    with pytest.raises(FormatError):
        Chain.parse("fp16").decoder().decode(stages, bytes(size), torch.float32, (4,))


@given(st.integers(-1100, 1100))
@settings(max_examples=50)
def test_any_shift_a_peer_names_is_harmless(shift: int) -> None:
    import msgspec

    stage = CodedStage(3, 1, msgspec.msgpack.encode([shift]))
    back = Chain.parse("fp16").decoder().decode((stage,), b"\x00\x3c" * 3, torch.float32, (3,))
    assert back.shape == (3,)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "write name"),
        ("nonsense", "unknown; known: raw"),
        ("fp16(", "write name"),
        ("fp16(x)", "has no value"),
        ("fp16(x=1)", "its options: none"),
        ("fp16+fp16", "twice"),
        ("fp16+bf16", "choose one"),
        ("raw+fp16", "write fp16\\+raw"),
    ],
)
def test_wrong_chains_name_the_way_out(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Chain.parse(spec)


def test_a_stage_that_is_no_text_is_refused() -> None:
    for spec in ([5], [None], [{"name": 5}]):
        with pytest.raises(ConfigError):
            Chain.parse(spec)


def test_a_chain_without_stages_is_refused() -> None:
    with pytest.raises(ConfigError, match="write raw"):
        Chain.parse([])


def test_chains_compare_by_what_they_do() -> None:
    assert Chain.parse(" fp16 + raw ") == Chain.parse(["fp16"]) == Chain.parse([{"name": "fp16"}])
    assert Chain.parse("fp16").fingerprint() != Chain.parse("bf16").fingerprint()
    assert Chain.parse("raw").spec == "raw"
    assert Chain.parse("raw").lossless
    assert not Chain.parse("fp16").lossless


def test_state_of_another_chain_is_refused() -> None:
    encoder = Chain.parse("fp16").encoder()
    assert encoder.state_dict() == {}
    with pytest.raises(FormatError, match="fits no stage"):
        encoder.load_state_dict({"0.topk.residual": torch.zeros(1)})
    with pytest.raises(FormatError, match="no state"):
        encoder.load_state_dict({"0.fp16.x": torch.zeros(1)})


def test_feedback_for_a_stage_that_takes_none_is_refused() -> None:
    encoder = Chain.parse("fp16").encoder()
    encoder.apply({})
    with pytest.raises(FormatError, match="takes no feedback"):
        encoder.apply({"fp16": {"x": 1.0}})
    with pytest.raises(FormatError, match="not in fp16"):
        encoder.apply({"errbound": {"epsilon": 1.0}})


def test_a_package_s_codec_that_can_not_be_imported_is_told_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    metadata = tmp_path / "broken-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(f"[{base.ENTRY_POINTS}]\nmine = no_such_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    base._import_others.cache_clear()
    with pytest.raises(ConfigError, match="codec 'mine' is unknown"):
        Chain.parse("mine")
    assert "codec mine (no_such_module) can't be imported: No module named 'no_such_module'" in caplog.text
    base._import_others.cache_clear()
