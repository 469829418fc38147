"""The tables of the JPEG standard (ITU-T T.81, annex K), and their usual scaling by quality."""

from __future__ import annotations

from functools import lru_cache

# fmt: off
_LUMA = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55,
    14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
)
_CHROMA = (
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99,
    24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99, 99, 99, 99, 99,
    99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99,
    99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99,
)
# fmt: on
_ZIGZAG = sorted(range(64), key=lambda i: (i // 8 + i % 8, i % 8 if (i // 8 + i % 8) % 2 == 0 else i // 8))

# Counts of codes of 1 to 16 bits, then symbols: luma DC and AC, chroma DC and AC.
HUFFMAN: tuple[bytes, ...] = tuple(
    bytes.fromhex(table)
    for table in (
        "00010501010101010100000000000000000102030405060708090a0b",
        "0002010303020403050504040000017d01020300041105122131410613516107227114328191a1082342b1c11552d1f02433"
        "627282090a161718191a25262728292a3435363738393a434445464748494a535455565758595a636465666768696a737475"
        "767778797a838485868788898a92939495969798999aa2a3a4a5a6a7a8a9aab2b3b4b5b6b7b8b9bac2c3c4c5c6c7c8c9cad2"
        "d3d4d5d6d7d8d9dae1e2e3e4e5e6e7e8e9eaf1f2f3f4f5f6f7f8f9fa",
        "00030101010101010101010000000000000102030405060708090a0b",
        "00020102040403040705040400010277000102031104052131061241510761711322328108144291a1b1c109233352f01562"
        "72d10a162434e125f11718191a262728292a35363738393a434445464748494a535455565758595a636465666768696a7374"
        "75767778797a82838485868788898a92939495969798999aa2a3a4a5a6a7a8a9aab2b3b4b5b6b7b8b9bac2c3c4c5c6c7c8c9"
        "cad2d3d4d5d6d7d8d9dae2e3e4e5e6e7e8e9eaf2f3f4f5f6f7f8f9fa",
    )
)


@lru_cache(maxsize=100)
def quantisation(quality: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Luma and chroma steps for a quality of 1 to 100, row by row."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    luma, chroma = (tuple(min(max((v * percent + 50) // 100, 1), 255) for v in t) for t in (_LUMA, _CHROMA))
    return luma, chroma


def zigzag(table: tuple[int, ...]) -> bytes:
    """A table in the order of the file format."""
    return bytes(table[i] for i in _ZIGZAG)
