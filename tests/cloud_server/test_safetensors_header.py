"""What is a safetensors file and what only looks like one."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fogline.cloud_server.safetensors_header import check_safetensors
from fogline.common.errors import InputError

from .models_for_tests import file_of, model


def check(tmp_path: Path, data: bytes) -> int:
    path = tmp_path / "model"
    path.write_bytes(data)
    return check_safetensors(path)


def tensor(dtype: Any = "U8", shape: Any = (4,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_good_files(tmp_path: Path) -> None:
    assert check(tmp_path, model()) == 1
    assert check(tmp_path, file_of({}, b"")) == 0
    two = {
        "b": tensor("F16", (2, 2), (4, 12)),
        "a": tensor(),
        "none": tensor("F64", (0, 3), (4, 4)),
        "__metadata__": {"k": "v"},
    }
    assert check(tmp_path, file_of(two, bytes(12))) == 3
    assert check(tmp_path, file_of({"scalar": tensor("F32", (), (0, 4))}, bytes(4))) == 1


def test_the_reference_implementation_agrees(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    numpy = pytest.importorskip("numpy")
    arrays = {"a": numpy.zeros((3, 5), "float32"), "b": numpy.arange(7), "c": numpy.zeros((0,), "int8")}
    assert check(tmp_path, safetensors.save(arrays, {"made": "here"})) == 3


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "0 bytes"),
        (b"1234567", "7 bytes"),
        (struct.pack("<Q", 1 << 60) + b"{}", "header of 1152921504606846976 bytes"),
        (struct.pack("<Q", 100) + b"{}", "header of 100 bytes"),
        (file_of(b"\xff\xfe", b""), "not valid JSON"),
        (file_of(b"[" * 100_000, b""), "not valid JSON"),
        (file_of(b'{"a":' * 100_000, b""), "not valid JSON"),
        (file_of(b'{"a": ' + b"9" * 5000 + b"}", b""), "not valid JSON"),
        (file_of([], b""), "not a JSON object"),
        (file_of(b'{"a": 1, "a": 1}', b""), "twice"),
        (file_of({"__metadata__": {"a": 1}}, b""), "__metadata__"),
        (file_of({"a": 1}, b""), "must have dtype"),
        (file_of({"a": tensor() | {"extra": 1}}, bytes(4)), "nothing else"),
        (file_of({"a": tensor("O8")}, bytes(4)), "unknown dtype"),
        (file_of({"a": tensor(["U8"])}, bytes(4)), "unknown dtype"),
        (file_of({"a": tensor(shape=(-4,))}, bytes(4)), "bad shape"),
        (file_of({"a": tensor(shape=(True, 4))}, bytes(4)), "bad shape"),
        (file_of({"a": tensor(shape=(1 << 50,))}, bytes(4)), "bad shape"),
        (file_of({"a": tensor(offsets=(0, 4, 8))}, bytes(4)), "data_offsets"),
        (file_of({"a": tensor(offsets=(4, 0))}, bytes(4)), "takes -4 bytes"),
        (file_of({"a": tensor(shape=(5,))}, bytes(4)), "takes 4 bytes"),
        (file_of({"a": tensor(), "b": tensor()}, bytes(8)), "begins at 0 and the one before ends at 4"),
        (file_of({"a": tensor(), "b": tensor(offsets=(5, 9))}, bytes(9)), "begins at 5"),
        (file_of({"a": tensor()}, bytes(5)), "holds 5 bytes"),
        (file_of({"a": tensor()}, bytes(3)), "holds 3 bytes"),
    ],
)
def test_bad_files(tmp_path: Path, data: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words):
        check(tmp_path, data)


@given(st.binary(max_size=120), st.integers(0, 120))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_garbage_is_refused_with_one_error(tmp_path: Path, noise: bytes, at: int) -> None:
    good = model(1, 64)
    bad = good[:at] + noise + good[at + len(noise) :]
    if bad != good:
        try:
            check(tmp_path, bad)
        except InputError:
            return
        assert len(bad) == len(good)  # only tensor bytes or harmless header bytes differ
