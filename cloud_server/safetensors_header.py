"""Is this file a well-formed safetensors file? Answered from its header, without torch, without reading the tensors.

Format: u64 little-endian header size, JSON header, tensor bytes. Ranges must fill the rest of the file exactly: no
hole, no overlap, each as long as its dtype and shape say. Source: the format section of the safetensors README.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fogline.common.errors import InputError

MAX_HEADER_BYTES = 8 << 20  # the format allows 100 MB; a model of 10,000 tensors needs 1

_ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4,
    "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip


def check_safetensors(path: Path) -> int:
    """Return the number of tensors. Raises InputError that says what is wrong."""
    size = path.stat().st_size
    if size < 8:
        raise InputError(f"model of {size} bytes is not a safetensors file; it begins with an 8-byte header size")
    with path.open("rb") as file:
        (header_bytes,) = struct.unpack("<Q", file.read(8))
        if header_bytes > min(MAX_HEADER_BYTES, size - 8):
            raise InputError(
                f"model is not a safetensors file: header of {header_bytes} bytes in a file of {size}; "
                f"at most {MAX_HEADER_BYTES}"
            )
        raw = file.read(header_bytes)
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise InputError(f"model is not a safetensors file: its header is not valid JSON ({error})") from error
    if not isinstance(header, dict):
        raise InputError("model is not a safetensors file: its header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InputError("model is not a safetensors file: __metadata__ must map texts to texts")
    ranges = sorted(_range(name, entry) for name, entry in header.items())
    end = 0
    for begin, stop, name in ranges:
        if begin != end:
            raise InputError(
                f"model tensor {name!r} begins at {begin} and the one before ends at {end}; write it again"
            )
        end = stop
    if end != size - 8 - header_bytes:
        raise InputError(f"model holds {size - 8 - header_bytes} bytes of tensors and its header describes {end}")
    return len(ranges)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found


def _range(name: str, entry: object) -> tuple[int, int, str]:
    if not isinstance(entry, Mapping) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise InputError(f"model tensor {name[:80]!r} must have dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise InputError(f"model tensor {name[:80]!r} has the unknown dtype {str(dtype)[:20]!r}")
    if not _sizes(shape, 32) or not _sizes(offsets, 2) or len(offsets) != 2:
        raise InputError(
            f"model tensor {name[:80]!r} has a bad shape or data_offsets; they are lists of integers from 0"
        )
    begin, end = offsets
    if end - begin != math.prod(shape) * _ITEM_BYTES[dtype]:
        raise InputError(
            f"model tensor {name[:80]!r} takes {end - begin} bytes and {dtype} {shape} needs another number"
        )
    return begin, end, name


def _sizes(value: Any, longest: int) -> bool:
    if not isinstance(value, list) or len(value) > longest:
        return False
    return all(type(item) is int and 0 <= item < 1 << 48 for item in value)
