"""What a planner can choose from: where to cut, how to code what crosses, in which batches. Pure logic.

The time of a request is that of the survey (Matsubara et al. 2022), for one hop
`head + encode + bytes ÷ rate + round trip + decode + queue + tail`, and so on hop by hop for three tiers:

    edge | fog | cloud      two cuts; the same cut twice passes what crosses on uncomputed, one cut ends at the fog
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from fogline.common.errors import ConfigError
from fogline.common.split.link import LinkEstimate
from fogline.common.split.profile import INPUT, CutFigures, Profile

MAX_HOPS = 2


@dataclass(frozen=True)
class Option:
    """One way to run a batch. Without hops everything is computed on the device.

    `hosts_s[k]` is what host k computes, profiled and unloaded, coding included: host 0 is the device. Bytes are of
    the whole batch.
    """

    batch: int
    cuts: tuple[str, ...]  # one for each hop
    codecs: tuple[str, ...]
    hosts_s: tuple[float, ...]
    coded_bytes: tuple[float, ...]
    ratio: float = 0.0  # elements of the first cut ÷ elements of the input
    accuracy_drop: float = 0.0
    rest_s: float = 0.0  # on the device, from the first cut to the end: what falling back costs
    coding_s: tuple[tuple[float, float], ...] = ()  # encode and decode of each hop, contained in hosts_s

    @property
    def name(self) -> str:
        """As in `layer2 int8` or `local`."""
        if not self.cuts:
            return "local"
        return " | ".join(f"{cut} {codec}" for cut, codec in zip(self.cuts, self.codecs, strict=True))


@dataclass(frozen=True)
class Load:
    """How hosts differ from their profiles now: factors on computing, and seconds of waiting for their turn."""

    factors: tuple[float, ...] = (1.0, 1.0, 1.0)  # of the device, the first host, the second
    queues_s: tuple[float, ...] = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Power:
    """What the device draws, in watts, for the energy objective. Defaults are near a Raspberry Pi 4 with a radio."""

    compute_w: float = 6.0
    transmit_w: float = 4.5
    idle_w: float = 2.7

    def __post_init__(self) -> None:
        """Refuse what is no power. Raises ConfigError."""
        for name in ("compute_w", "transmit_w", "idle_w"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise ConfigError(f"{name} {value} is no power; give watts, 0 or more")


@dataclass(frozen=True)
class Terms:
    """Every cost term of one option under one link and load, in seconds and joules."""

    option: Option
    device_s: float
    transfer_s: float
    round_trips_s: float
    waiting_s: float  # behind bytes already under way, and for a host's turn
    hosts_s: float
    energy_j: float

    @property
    def latency_s(self) -> float:
        """From the input at the device to the result there."""
        return self.device_s + self.transfer_s + self.round_trips_s + self.waiting_s + self.hosts_s


class Table:
    """Options as plain rows, so that weighing them costs microseconds.

    After a model has run, what a decision touches comes from memory: there a loop over numbers is faster than a few
    calls of an array library, up to some hundred options.
    """

    def __init__(self, options: Sequence[Option]) -> None:
        self.options = tuple(options)
        self.hops = max((len(one.cuts) for one in options), default=0)
        self.batch = [one.batch for one in options]
        self.device_s = [one.hosts_s[0] for one in options]
        self.rest_s = [one.rest_s for one in options]
        self.local = next((i for i, one in enumerate(self.options) if not one.cuts), None)
        self.bytes = [_padded(one.coded_bytes, self.hops) for one in options]  # by hop
        self.host_s = [_padded(one.hosts_s[1:], self.hops) for one in options]
        # Device, then for each hop: bytes, whether it is used, host.
        self._rows = [
            (d, *(x for h in range(self.hops) for x in (b[h], float(h < len(one.cuts)), s[h])))
            for one, d, b, s in zip(options, self.device_s, self.bytes, self.host_s, strict=True)
        ]

    def latency_s(self, links: Sequence[LinkEstimate], load: Load) -> list[float]:
        """Predicted seconds of each option; infinite for those that need a link which can't be used."""
        factor = load.factors[0]
        if not self.hops:
            return [factor * device for device in self.device_s]
        per_byte, fixed, host = self._weights(0, links, load)
        if self.hops == 1:
            return [
                d * factor + b * per_byte + fixed + s * host if used else d * factor for d, b, used, s in self._rows
            ]
        then_byte, then_fixed, then_host = self._weights(1, links, load)
        return [
            d * factor
            + (b * per_byte + fixed + s * host if used else 0.0)
            + (c * then_byte + then_fixed + t * then_host if more else 0.0)
            for d, b, used, s, c, more, t in self._rows
        ]

    def _weights(self, hop: int, links: Sequence[LinkEstimate], load: Load) -> tuple[float, float, float]:
        """Seconds per byte, seconds whatever the bytes, which are infinite without a link, and the host's factor."""
        if hop >= len(links):
            return 0.0, math.inf, 0.0
        link = links[hop]
        per_byte = link.seconds_per_byte
        if per_byte == math.inf:
            return 0.0, math.inf, 0.0
        fixed = link.rtt_s + link.backlog_bytes * per_byte + load.queues_s[hop + 1]
        return per_byte, fixed, load.factors[hop + 1]

    def energy_j(self, links: Sequence[LinkEstimate], load: Load, power: Power) -> list[float]:
        """Joules that the device spends; infinite where the latency is."""
        usable = bool(self.hops and links and links[0].usable)
        per_byte = links[0].seconds_per_byte if usable else 0.0
        found = []
        for total, device, counts in zip(self.latency_s(links, load), self.device_s, self.bytes, strict=True):
            compute = device * load.factors[0]
            sending = counts[0] * per_byte if usable else 0.0
            waiting = total - compute - sending
            found.append(compute * power.compute_w + sending * power.transmit_w + waiting * power.idle_w)
        return found

    def terms(self, index: int, links: Sequence[LinkEstimate], load: Load, power: Power) -> Terms:
        """Every term of one option, for people."""
        one = self.options[index]
        device = one.hosts_s[0] * load.factors[0]
        transfer = trips = waiting = hosts = 0.0
        for hop in range(len(one.cuts)):
            link = links[hop] if hop < len(links) else LinkEstimate.stated(0.0)
            per_byte = link.seconds_per_byte
            transfer += one.coded_bytes[hop] * per_byte
            trips += link.rtt_s
            waiting += load.queues_s[hop + 1] + (link.backlog_bytes * per_byte if link.backlog_bytes else 0.0)
            hosts += one.hosts_s[hop + 1] * load.factors[hop + 1]
        first = one.coded_bytes[0] * links[0].seconds_per_byte if one.cuts and links else 0.0
        idle = transfer - first + trips + waiting + hosts
        energy = device * power.compute_w + first * power.transmit_w + idle * power.idle_w
        return Terms(one, device, transfer, trips, waiting, hosts, energy)


def _padded(values: Sequence[float], length: int) -> tuple[float, ...]:
    return (*values, *(0.0,) * (length - len(values)))


def pareto(options: Sequence[Option], tolerance: float = 0.0) -> list[Option]:
    """Without those that another beats in bytes and time on every host, so that no link or load could make them best.

    Nor those that another would beat if it were faster by the share `tolerance` of all that hosts compute for it: that
    loses so much at most on unloaded hosts. Accuracy is not weighed: leave out what loses too much before.
    """

    def figures(one: Option) -> tuple[tuple[float, ...], tuple[float, ...]]:
        pad = MAX_HOPS - len(one.cuts)
        return (*one.hosts_s, *(0.0,) * pad), (*one.coded_bytes, *(0.0,) * pad, len(one.cuts))

    def beats(
        one: tuple[tuple[float, ...], tuple[float, ...]], other: tuple[tuple[float, ...], tuple[float, ...]]
    ) -> bool:
        later = sum(max(0.0, a - b) for a, b in zip(one[0], other[0], strict=True))
        return later <= tolerance * sum(other[0]) and all(a <= b for a, b in zip(one[1], other[1], strict=True))

    kept: list[tuple[Option, tuple[tuple[float, ...], tuple[float, ...]]]] = []
    # Who sends less first: what is a little slower, and sends less, then takes the place of what is a little faster.
    order = [(one, figures(one)) for one in options]
    order.sort(key=lambda pair: (pair[1][1], sum(pair[1][0])) if tolerance else (sum(pair[1][0]), pair[1][1]))
    for one, mine in order:
        if not any(other.batch == one.batch and beats(theirs, mine) for other, theirs in kept):
            kept.append((one, mine))
    found = {id(one) for one, _ in kept}
    return [one for one in options if id(one) in found]


def compressive(cuts: Sequence[CutFigures]) -> list[CutFigures]:
    """The natural bottlenecks that can pay: those with fewer elements than the input and than every cut before them."""
    found, least = [], 1.0
    for cut in cuts:
        if cut.name != INPUT and cut.ratio < least:
            found.append(cut)
            least = cut.ratio
    return found


def enumerate_options(profiles: Sequence[Profile], batch: int, *, codecs: Sequence[str] | None = None) -> list[Option]:
    """Every option for a batch size, local first. `profiles`: of the device, the host behind the first hop, the second.

    Raises ConfigError where the profiles are not of one model or lack a codec, InputError for a batch size too far
    from what was measured.
    """
    if not 1 <= len(profiles) <= MAX_HOPS + 1:
        raise ConfigError(f"{len(profiles)} profiles; give those of the device and of one or two hosts")
    device = profiles[0]
    for other in profiles[1:]:
        other.check(architecture=device.architecture)
        if [cut.name for cut in other.cuts] != [cut.name for cut in device.cuts]:
            raise ConfigError(f"the profiles of {device.model} are of different cuts; measure both with one version")
    whole = device.at(device.whole_s, batch)
    options = [Option(batch, (), (), (whole,), (), rest_s=0.0)]
    if len(profiles) == 1:
        return options
    sent = _sent(profiles, batch, codecs)
    for one in sent[0]:
        hosts = (one.head_s + one.encode_s, one.decode_s + one.tail_s)
        coding = ((one.encode_s, one.decode_s),)
        options.append(
            Option(batch, (one.cut,), (one.codec,), hosts, (one.coded_bytes,), one.ratio, one.drop, one.rest_s, coding)
        )
    if len(profiles) == 3:
        options += _two_hops(profiles[1], sent, batch)
    return options


@dataclass(frozen=True)
class _Sent:
    """What crosses one hop at one cut in one codec; head, encode and rest are the sender's times."""

    place: int  # of the cut in forward order
    cut: str
    codec: str
    ratio: float
    drop: float
    coded_bytes: float
    head_s: float
    encode_s: float
    decode_s: float
    tail_s: float
    rest_s: float  # from the cut to the end on the sender


def _sent(profiles: Sequence[Profile], batch: int, codecs: Sequence[str] | None) -> list[list[_Sent]]:
    """What may cross each hop."""
    known = {one.codec for cut in profiles[0].cuts for one in cut.codecs}
    missing = [name for name in codecs or () if name not in known]
    if missing:
        raise ConfigError(
            f"codec {missing[0]!r} is not in the profile of {profiles[0].model}, which has {', '.join(sorted(known))}"
        )
    hops = []
    for sender, receiver in pairwise(profiles):
        theirs = {cut.name: cut for cut in receiver.cuts}
        rows = []
        for place, cut in enumerate(sender.cuts):
            decoders = {one.codec: one for one in theirs[cut.name].codecs}
            if cut.name == INPUT:
                head, rest, tail = 0.0, sender.at(sender.whole_s, batch), receiver.at(receiver.whole_s, batch)
            else:
                head, rest = sender.at(cut.head_s, batch), sender.at(cut.tail_s, batch)
                tail = receiver.at(theirs[cut.name].tail_s, batch)
            for one in cut.codecs:
                if (codecs is not None and one.codec not in codecs) or one.codec not in decoders:
                    continue
                rows.append(
                    _Sent(
                        place,
                        cut.name,
                        one.codec,
                        cut.ratio,
                        one.accuracy_drop,
                        sender.at(one.coded_bytes, batch),
                        head,
                        sender.at(one.encode_s, batch),
                        receiver.at(decoders[one.codec].decode_s, batch),
                        tail,
                        rest,
                    )
                )
        hops.append(rows)
    return hops


def _two_hops(fog: Profile, sent: Sequence[Sequence[_Sent]], batch: int) -> list[Option]:
    """Both cuts of `edge | fog | cloud`, the second at or after the first; what lossy codecs lose is added up."""
    heads = [fog.at(cut.head_s, batch) for cut in fog.cuts]
    found = []
    for first in sent[0]:
        for second in sent[1]:
            if second.place < first.place:
                continue
            middle = max(0.0, heads[second.place] - heads[first.place])
            hosts = (
                first.head_s + first.encode_s,
                first.decode_s + middle + second.encode_s,
                second.decode_s + second.tail_s,
            )
            found.append(
                Option(
                    batch,
                    (first.cut, second.cut),
                    (first.codec, second.codec),
                    hosts,
                    (first.coded_bytes, second.coded_bytes),
                    first.ratio,
                    first.drop + second.drop,
                    first.rest_s,
                    ((first.encode_s, first.decode_s), (second.encode_s, second.decode_s)),
                )
            )
    return found
