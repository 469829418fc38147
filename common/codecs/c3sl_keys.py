"""Keys of C3-SL, the same on every host for the same seed.

They are made from integers only: PCG64's raw output, whose stream numpy keeps for ever (unlike that of its
distributions), seeded by a hash. A Gaussian value is the sum of twelve uniform ones (Irwin-Hall), so that no libm takes
part and the keys' fingerprint is one of integers.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

KeyKind = Literal["gaussian", "unitary"]
_UNIFORMS = 12  # of 32 bits, in six words of 64


@dataclass(frozen=True)
class Keys:
    """Spectra of `ratio` keys of `length`; `spectra` is complex (ratio, length // 2 + 1), of unit-norm keys."""

    spectra: torch.Tensor
    fingerprint: bytes  # eight bytes


def integers(seed: int, index: int, length: int) -> NDArray[np.int64]:
    """Key number `index` before scaling: `length` integers, about normal, of variance 2^64."""
    digest = hashlib.sha256(f"fogline c3sl {seed} {index} {length}".encode()).digest()
    words = np.random.PCG64(int.from_bytes(digest, "little")).random_raw(length * _UNIFORMS // 2)
    halves = np.asarray(words, dtype="<u8").view("<u4").reshape(length, _UNIFORMS)
    key: NDArray[np.int64] = halves.astype(np.int64).sum(axis=1) - (_UNIFORMS * ((1 << 32) - 1)) // 2
    return key


def make_keys(seed: int, ratio: int, length: int, kind: KeyKind) -> Keys:
    """The keys of a session. `unitary`: every frequency has modulus 1, so that a key alone adds no noise."""
    digest = hashlib.blake2b(f"{kind} {ratio} {length}".encode(), digest_size=8)
    spectra = torch.empty(ratio, length // 2 + 1, dtype=torch.complex128)
    for i in range(ratio):
        key = integers(seed, i, length)
        digest.update(key.astype("<i8").tobytes())
        values = torch.from_numpy(key.astype(np.float64))
        spectrum = torch.fft.rfft(values / values.norm().clamp_min(1.0))
        if kind == "unitary":
            modulus = spectrum.abs()
            spectrum = torch.where(modulus > 1e-12, spectrum / modulus.clamp_min(1e-12), torch.ones_like(spectrum))
        spectra[i] = spectrum
    return Keys(spectra, digest.digest())
