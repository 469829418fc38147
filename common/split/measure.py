"""Measures a profile: the real segments and codecs, timed on this host, on a calibration set.

Every figure is a median over rounds in which all cuts take turns, so that what else the host does in one minute
doesn't fall on one cut alone. A process that gets only a share of its processor (a container's quota) runs what is
shorter than its slice at full speed and is stopped later, for what comes next: there the figures are of runs back to
back, long enough for that to even out.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fogline.common.codecs import Chain, CodedStage, stages
from fogline.common.errors import ConfigError, InputError
from fogline.common.split.cuts import Cut, architecture_hash, cuts
from fogline.common.split.profile import INPUT, SCHEMA, CodecFigures, CutFigures, Profile, hardware_id
from fogline.common.split.segments import split

CODECS = ("raw", "fp16", "int8", "int8+zstd", "jpeg-input")
LIMITED = 1.5  # wall time ÷ processor time beyond which something else holds this process back
BLOCK_S = 0.05  # of runs back to back, where it is
SIZED = 8  # batches whose coded sizes are averaged
PICTURES = "jpeg-input"  # a codec of pictures, which no activation is

Inputs = Tensor | Mapping[str, Tensor]


@dataclass(frozen=True)
class Calibration:
    """Inputs that stand for what will come: the first dimension of each tensor counts samples.

    With `labels`, class numbers of shape (samples,), a codec's accuracy drop is measured; without, the share of
    samples whose predicted class it changes.
    """

    inputs: Inputs
    labels: Tensor | None = None
    name: str = ""

    def __post_init__(self) -> None:
        """Raise InputError for no samples at all, or parts of different lengths."""
        sizes = {len(one) for one in _leaves(self.inputs)} | ({len(self.labels)} if self.labels is not None else set())
        if len(sizes) != 1 or 0 in sizes:
            raise InputError(f"a calibration set with parts of {sorted(sizes)} samples; give one or more of each")

    @property
    def samples(self) -> int:
        """How many."""
        return len(_leaves(self.inputs)[0])

    def batch(self, first: int, size: int) -> Inputs:
        """`size` samples from `first` on, beginning again at the end."""
        wanted = torch.arange(first, first + size) % self.samples
        if isinstance(self.inputs, Tensor):
            return self.inputs[wanted]
        return {name: tensor[wanted] for name, tensor in self.inputs.items()}


def usual_codecs() -> tuple[str, ...]:
    """Those of `CODECS` that this build has."""
    return tuple(spec for spec in CODECS if all(part in stages() for part in spec.split("+")))


@dataclass(frozen=True)
class Effort:
    """How long to measure: rounds over all cuts, and repetitions within each, the first of which is a warm-up."""

    rounds: int = 5
    repeats: int = 3
    samples: int = 16  # of the calibration set for sizes and accuracy, at most


def measure(
    model: nn.Module,
    calibration: Calibration,
    *,
    name: str,
    batches: Sequence[int] = (1,),
    codecs: Sequence[str] | None = None,
    cut_names: Sequence[str] | None = None,
    effort: Effort | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Profile:
    """The profile of `model` on this host, in the mode that it is in.

    `codecs`: chains; None for those that suit inference. `cut_names`: the cuts to measure; None for those that can
    pay, with fewer elements than the input and than every cut before. Raises ConfigError for an
    unknown cut or codec and InputError where the model fails on the inputs.
    """
    effort = effort or Effort()
    if not batches or any(size < 1 for size in batches):
        raise ConfigError(f"batches {list(batches)}; give sizes of 1 or more")
    chains = {spec: Chain.parse(spec) for spec in (usual_codecs() if codecs is None else codecs)}
    example = calibration.batch(0, max(batches))
    chosen = _chosen(cuts(model, example), cut_names)
    parts: dict[str, _Part] = {INPUT: _Part(None, model)}
    for cut in chosen:
        head, tail = split(model, at=cut.name)
        assert head is not None
        assert tail is not None
        parts[cut.name] = _Part(head, tail)
    ratios = {INPUT: 1.0, **{cut.name: cut.ratio for cut in chosen}}
    head_s: dict[str, dict[int, float]] = {part: {} for part in parts}
    tail_s: dict[str, dict[int, float]] = {part: {} for part in parts}
    coded: dict[tuple[str, str], list[dict[int, float]]] = {}
    with torch.no_grad():
        for size in sorted(set(batches)):
            tell(f"batch {size}: {len(parts)} cuts, {len(chains)} codecs")
            _times(parts, chains, calibration, size, effort, head_s, tail_s, coded)
            _consistent(head_s, tail_s, size)
        drops = _drops(parts, chains, calibration, effort, tell)
        result = sum(
            leaf.numel() * leaf.element_size() for leaf in _tensors(model_call(model, calibration.batch(0, 1)))
        )
    figures = tuple(
        CutFigures(
            part,
            ratios[part],
            head_s[part],
            tail_s[part],
            tuple(
                _figures(codec, coded[part, codec], drops.get((part, codec), 0.0))
                for codec in chains
                if (part, codec) in coded
            ),
        )
        for part in parts
    )
    return Profile(
        SCHEMA,
        name,
        architecture_hash(model),
        hardware_id(torch.get_num_threads()),
        str(torch.__version__),
        torch.get_num_threads(),
        sum(leaf[:1].numel() for leaf in _leaves(calibration.inputs)),
        tail_s[INPUT],
        figures,
        calibration.name,
        float(result),
    )


def _figures(codec: str, tables: list[dict[int, float]], drop: float) -> CodecFigures:
    sizes, encode_s, decode_s = tables
    return CodecFigures(codec, sizes, encode_s, decode_s, drop)


def model_call(model: nn.Module, inputs: Any) -> Any:
    """Call a model as `cuts` does: with one tensor, or with keywords."""
    return model(**inputs) if isinstance(inputs, Mapping) else model(inputs)


def predictions(output: Any) -> Tensor:
    """The class of each sample: the arg-max over the last dimension of the output's first floating tensor."""
    scores = next((one for one in _tensors(output) if one.is_floating_point() and one.dim() >= 2), None)
    if scores is None:
        raise InputError(
            "the model's output holds no scores of shape (batch, …, classes), so accuracy can't be measured"
        )
    return scores.argmax(-1)


@dataclass(frozen=True)
class _Part:
    """One cut's two sides; without a head the input itself is sent."""

    head: nn.Module | None
    tail: nn.Module

    def before(self, inputs: Any) -> tuple[Tensor, ...]:
        """What crosses."""
        if self.head is None:
            return _leaves(inputs)
        crossing = model_call(self.head, inputs)
        return crossing if isinstance(crossing, tuple) else (crossing,)

    def after(self, crossing: tuple[Tensor, ...], inputs: Any) -> Any:
        """The result of what crossed; `inputs` give the names where the input itself is sent."""
        if self.head is not None:
            return self.tail(*crossing)
        if isinstance(inputs, Mapping):
            return self.tail(**dict(zip(inputs, crossing, strict=True)))
        return self.tail(crossing[0])


_Coded = tuple[tuple[CodedStage, ...], Any, torch.dtype, tuple[int, ...]]


def _encode(chain: Chain, crossing: tuple[Tensor, ...]) -> list[_Coded]:
    found = []
    for tensor in crossing:
        one = chain.encoder().encode(tensor, training=False)
        found.append((one.stages, one.payload, one.dtype, tuple(one.shape)))
    return found


def _decode(chain: Chain, coded: list[_Coded]) -> tuple[Tensor, ...]:
    # As it comes off the wire: into a buffer of the receiver's own.
    return tuple(
        chain.decoder().decode(stages, bytearray(payload), dtype, shape) for stages, payload, dtype, shape in coded
    )


def _size(coded: list[_Coded]) -> int:
    return sum(len(payload) + sum(len(stage.params) for stage in stages) for stages, payload, _, _ in coded)


def _times(
    parts: Mapping[str, _Part],
    chains: Mapping[str, Chain],
    calibration: Calibration,
    size: int,
    effort: Effort,
    head_s: dict[str, dict[int, float]],
    tail_s: dict[str, dict[int, float]],
    coded: dict[tuple[str, str], list[dict[int, float]]],
) -> None:
    """Fill in the tables for one batch size: times of one batch, sizes as means of some."""
    inputs = calibration.batch(0, size)
    count = min(SIZED, max(1, calibration.samples // size))
    others = [calibration.batch(index * size, size) for index in range(1, count)]
    jobs: dict[tuple[str, ...], Callable[[], Any]] = {}
    for part, sides in parts.items():
        crossing = sides.before(inputs)
        jobs["head", part] = lambda sides=sides: sides.before(inputs)  # type: ignore[misc]
        jobs["tail", part] = lambda sides=sides, crossing=crossing: sides.after(crossing, inputs)  # type: ignore[misc]
        for codec, chain in chains.items():
            if codec.startswith(PICTURES) and part != INPUT:
                continue
            try:
                done = _encode(chain, crossing)
            except InputError:
                continue  # a codec of pictures, and the input is none
            sizes = [_size(done), *(_size(_encode(chain, sides.before(one))) for one in others)]
            coded.setdefault((part, codec), [{}, {}, {}])[0][size] = statistics.fmean(sizes)
            jobs["encode", part, codec] = lambda chain=chain, crossing=crossing: _encode(chain, crossing)  # type: ignore[misc]
            jobs["decode", part, codec] = lambda chain=chain, done=done: _decode(chain, done)  # type: ignore[misc]
    times: dict[tuple[str, ...], list[float]] = {key: [] for key in jobs}
    limited = _limited(list(jobs.values()))
    for _ in range(effort.rounds):
        for key, job in jobs.items():
            job()
            for _ in range(1 if limited else effort.repeats):
                times[key].append(_timed(job, BLOCK_S if limited else 0.0, effort.repeats if limited else 1))
    for key, seconds in times.items():
        median = statistics.median(seconds)
        if key[0] == "head":
            head_s[key[1]][size] = 0.0 if key[1] == INPUT else median
        elif key[0] == "tail":
            tail_s[key[1]][size] = median
        else:
            coded[key[1], key[2]][1 if key[0] == "encode" else 2][size] = median


def _limited(jobs: Sequence[Callable[[], Any]]) -> bool:
    """Whether something holds this process back while it runs them."""
    before, busy = time.perf_counter(), time.process_time()
    for job in jobs:
        job()
    return time.perf_counter() - before > LIMITED * (time.process_time() - busy)


def _timed(job: Callable[[], Any], least_s: float, least: int) -> float:
    """Seconds of one run, of at least `least` back to back that take at least `least_s`."""
    before, count = time.perf_counter(), 0
    while count < least or time.perf_counter() - before < least_s:
        job()
        count += 1
    return (time.perf_counter() - before) / count


def _consistent(head_s: dict[str, dict[int, float]], tail_s: dict[str, dict[int, float]], size: int) -> None:
    """Take out noise that can't be: a longer head takes no less time than a shorter one, nor a shorter tail more."""
    parts = [part for part in head_s if part != INPUT]
    heads = _rising([head_s[part][size] for part in parts] + [tail_s[INPUT][size]])
    tails = _rising([tail_s[part][size] for part in reversed(parts)] + [tail_s[INPUT][size]])
    for part, head, tail in zip(parts, heads, reversed(tails[:-1]), strict=False):
        head_s[part][size], tail_s[part][size] = head, tail
    tail_s[INPUT][size] = (heads[-1] + tails[-1]) / 2


def _rising(values: Sequence[float]) -> list[float]:
    """The nearest sequence that never falls, by least squares (pool adjacent violators)."""
    pools: list[tuple[float, int]] = []
    for value in values:
        mean, count = value, 1
        while pools and pools[-1][0] > mean:
            before, more = pools.pop()
            mean, count = (mean * count + before * more) / (count + more), count + more
        pools.append((mean, count))
    return [mean for mean, count in pools for _ in range(count)]


def _drops(
    parts: Mapping[str, _Part],
    chains: Mapping[str, Chain],
    calibration: Calibration,
    effort: Effort,
    tell: Callable[[str], None],
) -> dict[tuple[str, str], float]:
    """What each lossy codec loses at each cut, sample by sample, as it would be sent."""
    lossy = {codec: chain for codec, chain in chains.items() if not chain.lossless}
    count = min(calibration.samples, effort.samples)
    if not lossy:
        return {}
    whole = parts[INPUT].tail
    samples = [calibration.batch(index, 1) for index in range(count)]
    plain = [predictions(model_call(whole, one)) for one in samples]
    truth = plain if calibration.labels is None else [calibration.labels[i : i + 1] for i in range(count)]
    right = sum(float((a == b).float().mean()) for a, b in zip(plain, truth, strict=True)) / count
    found = {}
    for part, sides in parts.items():
        tell(f"accuracy at {part}")
        crossing = [sides.before(one) for one in samples]
        for codec, chain in lossy.items():
            if codec.startswith(PICTURES) and part != INPUT:
                continue
            kept = 0.0
            try:
                for one, tensors, label in zip(samples, crossing, truth, strict=True):
                    decoded = _decode(chain, _encode(chain, tensors))
                    kept += float((predictions(sides.after(decoded, one)) == label).float().mean())
            except InputError:
                continue
            found[part, codec] = right - kept / count
    return found


def _chosen(table: Sequence[Cut], names: Sequence[str] | None) -> list[Cut]:
    if names is None:
        found, least = [], 1.0
        for cut in table:
            if cut.ratio < least and cut.tail_macs > 0:
                found.append(cut)
                least = cut.ratio
        return found
    known = {name: cut for cut in table for name in (cut.name, *cut.aliases)}
    for name in names:
        if name not in known:
            raise ConfigError(f"no cut {name!r}; there are {', '.join(cut.name for cut in table) or 'none'}")
    wanted = {known[name].name for name in names}
    return [cut for cut in table if cut.name in wanted]


def _leaves(inputs: Any) -> tuple[Tensor, ...]:
    return (inputs,) if isinstance(inputs, Tensor) else tuple(inputs.values())


def _tensors(output: Any) -> list[Tensor]:
    """The tensors of an output in order, through tuples, lists and mappings (which dataclasses of models are)."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        return [leaf for one in output.values() for leaf in _tensors(one)]
    if isinstance(output, list | tuple):
        return [leaf for one in output for leaf in _tensors(one)]
    return []
