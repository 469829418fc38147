"""`c3sl`: several samples in the room of one, by circular convolution (Hsieh, Chuang, Wu: C3-SL, MLSP 2022).

The batch (B, …) is flattened to (B, D) and cut into groups of R samples. Each is convolved with a key of its own
(bound), a group is summed, and one vector leaves in place of R. Correlating it with a key (unbinding) gives that sample
back, with the others as noise: cos(z, ẑ) is about 1/√(1+R) with Gaussian keys, 1/√R with unitary ones. Binding and
unbinding are each other's adjoint, so gradients that return through the same stage are exact, and both directions
shrink by R.

The last group is padded with zeros and B restored. Results depend on a sample's neighbours in the batch.
Keys are no cipher. One vector mixes R samples: never group those of different owners.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, cast

import torch
from msgspec import Meta

from fogline.common.codecs.base import Buffer, Options, Params, Spec, Transform, register
from fogline.common.codecs.c3sl_keys import Keys, integers, make_keys
from fogline.common.codecs.raw import elements, tensor_of
from fogline.common.errors import FormatError, InputError

_MAX_KEY_BYTES = 1 << 27  # of spectra, in float64


class C3slOptions(Options, frozen=True):
    """`ratio`: samples in a group; `center`: each sample's mean travels apart, which uncentred (ReLU) features need."""

    ratio: Annotated[int, Meta(ge=1, le=1024)] = 4
    seed: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] = 0
    keys: Literal["gaussian", "unitary"] = "gaussian"
    center: bool = False


class C3slParams(Params, frozen=True):
    """`keys`: the fingerprint of the keys that were used."""

    keys: Annotated[bytes, Meta(min_length=8, max_length=8)]


@register
class C3sl(Transform):
    """Circular convolution across the batch."""

    number = 9
    name = "c3sl"
    rank = 5
    training_safe = False
    adjoint = "self"
    options_type: ClassVar[type[Options]] = C3slOptions
    params_type: ClassVar[type[Params]] = C3slParams
    summary = "R samples of a batch superposed by circular convolution with keys from a seed (C3-SL); for training only"
    ratio = "R"
    error = "noise of R times the signal's power; R-1 with unitary keys"

    def __init__(self, options: Options) -> None:
        """Options are `C3slOptions`."""
        self._options = cast(C3slOptions, options)
        self._keys: Keys | None = None
        self._length = 0

    def fingerprint(self) -> bytes:
        """The generator's first numbers: two hosts whose keys differ are told apart before any tensor travels."""
        return integers(self._options.seed, 0, 64).astype("<i8").tobytes()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The keys' fingerprint and length: a checkpoint must go on with the same."""
        if self._keys is None:
            return {}
        return {
            "keys": torch.tensor(list(self._keys.fingerprint), dtype=torch.uint8),
            "length": torch.tensor(self._length, dtype=torch.int64),
        }

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Make the keys again, and check that they are those of the checkpoint."""
        if not state:
            return
        if set(state) != {"keys", "length"} or state["length"].numel() != 1 or state["keys"].numel() != 8:
            raise FormatError(f"c3sl: a state of {sorted(state)[:4]}; expected the keys' fingerprint and length")
        length = int(state["length"])
        if not 1 <= length <= self._longest():
            raise FormatError(f"c3sl: a state with keys of length {length}; at most {self._longest()}")
        if self._of_length(length).fingerprint != bytes(state["keys"].tolist()):
            raise FormatError(f"c3sl: the checkpoint was made with other keys than seed {self._options.seed} gives")

    def _longest(self) -> int:
        return _MAX_KEY_BYTES // (8 * self._options.ratio)

    def _of_length(self, length: int) -> Keys:
        if self._keys is None or self._length != length:
            options = self._options
            self._keys, self._length = make_keys(options.seed, options.ratio, length, options.keys), length
        return self._keys

    @staticmethod
    def _wide(dtype: torch.dtype) -> torch.dtype:
        return torch.float64 if dtype == torch.float64 else torch.float32

    def encode(self, tensor: torch.Tensor, training: bool) -> tuple[torch.Tensor, Params, Buffer]:
        """(B, …) to (⌈B/R⌉, D) of the same dtype. Raises InputError without a batch, for NaN, infinity and overflow."""
        if not tensor.dim():
            raise InputError("c3sl: a tensor without dimensions has no batch to compress; send it raw")
        batch, ratio = tensor.shape[0], self._options.ratio
        length = tensor.numel() // batch
        if length > self._longest():
            raise InputError(
                f"c3sl: samples of {length} elements; at most {self._longest()} at ratio {ratio}; cut later"
            )
        keys = self._of_length(length)
        flat = tensor.reshape(batch, length).to(self._wide(tensor.dtype))
        side: Buffer = b""
        if self._options.center:
            means = flat.mean(dim=1, keepdim=True).to(tensor.dtype)
            flat = flat - means.to(flat.dtype)
            side = bytes(elements(means))
        groups = -(-batch // ratio)
        padded = torch.cat([flat, flat.new_zeros(groups * ratio - batch, length)]).reshape(groups, ratio, length)
        spectra = keys.spectra.to(padded.dtype.to_complex())
        bound = (torch.fft.rfft(padded) * spectra).sum(dim=1)
        coded = torch.fft.irfft(bound, n=length).to(tensor.dtype)
        if not torch.isfinite(coded).all():
            raise InputError(
                f"c3sl: a tensor {tuple(tensor.shape)} with NaN, infinity or values at its dtype's limit "
                "would spoil its whole group; look for where it diverged, or send it raw"
            )
        return coded, C3slParams(keys.fingerprint), side

    def coded(self, spec: Spec, params: C3slParams) -> Spec:
        """Groups of flattened samples. Raises FormatError for a tensor without a batch."""
        if not spec.shape or spec.numel // spec.shape[0] > self._longest():
            raise FormatError(f"c3sl: a tensor {spec.shape} has no batch, or samples too long for keys")
        length = spec.numel // spec.shape[0]
        return Spec(spec.dtype, (-(-spec.shape[0] // self._options.ratio), length))

    def side_bytes(self, spec: Spec, params: C3slParams) -> int:
        """One mean for each sample, where the means travel apart."""
        return spec.shape[0] * spec.dtype.itemsize if self._options.center and spec.shape else 0

    def decode(self, tensor: torch.Tensor, params: C3slParams, side: memoryview, spec: Spec) -> torch.Tensor:
        """Unbind every sample of every group but those that padded the last. Raises FormatError for other keys."""
        batch, length = spec.shape[0], spec.numel // spec.shape[0]
        if self._of_length(length).fingerprint != params.keys:
            raise FormatError(
                f"c3sl: the peer's keys for samples of {length} are not those of seed {self._options.seed}, ratio "
                f"{self._options.ratio} and {self._options.keys}; both ends need the same"
            )
        wide = tensor.to(self._wide(spec.dtype))
        spectra = self._of_length(length).spectra.to(wide.dtype.to_complex()).conj()
        unbound = torch.fft.irfft(torch.fft.rfft(wide).unsqueeze(1) * spectra, n=length)
        flat = unbound.reshape(-1, length)[:batch]
        if self._options.center:
            flat = flat + tensor_of(side, Spec(spec.dtype, (batch, 1))).to(flat.dtype)
        decoded: torch.Tensor = flat.to(spec.dtype).reshape(spec.shape)
        return decoded
