"""Split policies over a recorded link, request after request. Deterministic: no clock, no socket, no tensor.

A transfer takes as long as the trace needs to carry its bytes, in the order of sending; the result comes back after
half a round trip each way, over a downlink that is not the narrow one. What a policy knows is what a client would: the
times of its own answers and probes. Bytes whose result is no longer waited for still go through and hold up the next.
The oracle looks at the trace itself and takes the option that ends first, for each request anew.

All policies have the same seconds of the trace, so the mean latency (seconds ÷ requests done) is throughput, too.
Where several samples come at once, a request is all of them, in batches of the policy's choice, and its latency the
mean over the samples. A second hop has a rate that does not change.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fogline.common.errors import InputError
from fogline.common.split.bandwidth import Bandwidth
from fogline.common.split.link import LinkEstimate, LinkEstimator, LinkSettings
from fogline.common.split.options import Option, pareto
from fogline.common.split.planner import Planner, Ticket
from fogline.common.split.policies.base import Objective, Policy

CONNECT_S = 1.0  # how long a first request waits for the probe of a fresh connection, at most
TINY_PROBES = 5  # for the round trip, when a client connects
PROBE_TICK_S = 0.05  # how often a device that computes looks whether a probe is due


@dataclass(frozen=True)
class Setting:
    """What a simulation assumes. `overhead`: bytes on the wire ÷ coded bytes; `duration_s`: of each trace, at most.

    `objective`: by what the oracle and the best fixed choice are chosen. `samples`: that come at once. `beyond`: the
    second hop, where there is one. `every_s`: from one request's begin to the next one's, at least.

    What a real device adds, none by default: `send_s`, the mean of what it takes a busy device to hand a transfer to
    the network and its answer back, exponentially distributed; `probe_s`, what a probe takes of the device's time;
    `scatter`, the relative standard deviation of computing times, and `seed` for both.
    """

    rtt_s: float = 0.02
    duration_s: float = 300.0
    overhead: float = 1.0
    link: LinkSettings = field(default_factory=LinkSettings)
    objective: Objective = field(default_factory=Objective)
    samples: int = 1
    beyond: LinkEstimate | None = None
    every_s: float = 0.0
    send_s: float = 0.0
    probe_s: float = 0.0
    scatter: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise InputError for what no link has."""
        for name, least in (
            ("rtt_s", 0.0),
            ("duration_s", 0.001),
            ("overhead", 1.0),
            ("samples", 1),
            ("every_s", 0.0),
            ("send_s", 0.0),
            ("probe_s", 0.0),
            ("scatter", 0.0),
        ):
            value = getattr(self, name)
            if not (value >= least and math.isfinite(value)):
                raise InputError(f"{name} {value}; give {least:g} or more")


@dataclass(frozen=True)
class Request:
    """One request as it went: begin and latency in seconds on the trace's clock, joules of the device."""

    begun: float
    latency_s: float
    option: str
    fell_back: bool = False
    energy_j: float = 0.0


@dataclass
class Run:
    """All requests of one policy over one trace. `decision_s`: seconds on this host for each decision, in order."""

    policy: str
    requests: list[Request] = field(default_factory=list)
    decision_s: list[float] = field(default_factory=list)
    probe_bytes: int = 0
    probe_j: float = 0.0

    @property
    def mean_j(self) -> float:
        """Mean joules of a request, probes included."""
        return (sum(one.energy_j for one in self.requests) + self.probe_j) / len(self.requests)

    def mean(self, objective: Objective) -> float:
        """Of what the objective asks for: seconds or joules."""
        return self.mean_s if objective.kind == "latency" else self.mean_j

    @property
    def mean_s(self) -> float:
        """Mean latency."""
        return sum(one.latency_s for one in self.requests) / len(self.requests)

    def percentile_s(self, share: float) -> float:
        """Latency that `share` (0..1) of the requests do not exceed."""
        ordered = sorted(one.latency_s for one in self.requests)
        return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1 if share > 0 else 0)]

    @property
    def switches(self) -> int:
        """How often the option changed."""
        return sum(a.option != b.option for a, b in zip(self.requests, self.requests[1:], strict=False))

    @property
    def fallbacks(self) -> int:
        """Requests whose result was computed on the device after waiting for the host."""
        return sum(one.fell_back for one in self.requests)


def fixed(option: Option, bandwidth: Bandwidth, setting: Setting) -> Run:
    """The same option for every request."""
    return _unaware(option.name, lambda now, left: option, bandwidth, setting)


def oracle(options: Sequence[Option], bandwidth: Bandwidth, setting: Setting) -> Run:
    """For each request the option that ends first (or takes the least energy), knowing the trace."""
    candidates = pareto(options)
    least = min(one.batch for one in candidates)

    def choose(now: float, left: int) -> Option:
        fit = [one for one in candidates if one.batch <= max(left, least)]
        return min(fit, key=lambda one: _cost(one, now, left, bandwidth, setting))

    return _unaware("oracle", choose, bandwidth, setting)


def best_fixed(options: Sequence[Option], bandwidth: Bandwidth, setting: Setting) -> tuple[Option, Run]:
    """The option that is best over the whole trace, by the mean of what is asked for; known only afterwards."""
    candidates = pareto(options)
    least = min(one.batch for one in candidates)
    fit = [one for one in candidates if one.batch <= max(setting.samples, least)]
    runs = [(one, fixed(one, bandwidth, setting)) for one in fit]
    return min(runs, key=lambda pair: pair[1].mean(setting.objective))


def planned(policy: Policy, bandwidth: Bandwidth, setting: Setting) -> Run:
    """A policy that sees what a client sees."""
    return _Client(policy, bandwidth, setting).run()


def _end(option: Option, now: float, bandwidth: Bandwidth, setting: Setting) -> tuple[float, float]:
    """When a request that begins now ends on an otherwise idle link, and what it costs the device in joules."""
    power, at = setting.objective.power, now + option.hosts_s[0]
    computing = option.hosts_s[0] * power.compute_w
    if not option.cuts:
        return at, computing
    sent = bandwidth.finish(at, option.coded_bytes[0] * setting.overhead)
    rest = setting.rtt_s + _held_s(option, setting)
    return sent + rest, computing + (sent - at) * power.transmit_w + rest * power.idle_w


def _held_s(option: Option, setting: Setting) -> float:
    """What passes between the arrival at the first host and the departure of the result from there."""
    held = option.hosts_s[1]
    for count, host_s in zip(option.coded_bytes[1:], option.hosts_s[2:], strict=True):
        assert setting.beyond is not None
        held += count * setting.beyond.seconds_per_byte + setting.beyond.rtt_s + host_s
    return held


def _cost(option: Option, now: float, left: int, bandwidth: Bandwidth, setting: Setting) -> float:
    """Mean seconds until each of the waiting samples is done, or joules for each, batch after batch of one option."""
    at, count, seconds, joules = now, left, 0.0, 0.0
    while count > 0:
        at, energy = _end(option, at, bandwidth, setting)
        done = min(option.batch, count)
        seconds, joules, count = seconds + done * (at - now), joules + energy, count - done
    return (seconds if setting.objective.kind == "latency" else joules) / left


class _Chance:
    """What computing and sending really take, drawn for each request."""

    def __init__(self, setting: Setting) -> None:
        self._setting, self._random = setting, random.Random(setting.seed)

    def computed_s(self, seconds: float) -> float:
        """Of what is profiled as `seconds`."""
        scatter = self._setting.scatter
        return seconds * max(0.5, self._random.gauss(1.0, scatter)) if scatter else seconds

    def sent_s(self, device_s: float) -> float:
        """Beyond link and round trip; a device that did not compute before has time for it at once."""
        mean = self._setting.send_s
        return self._random.expovariate(1 / min(mean, device_s)) if mean and device_s else 0.0

    def of(self, option: Option) -> Option:
        """The option as it goes this time."""
        if not self._setting.scatter:
            return option
        hosts = tuple(self.computed_s(one) for one in option.hosts_s)
        return dataclasses.replace(option, hosts_s=hosts, rest_s=self.computed_s(option.rest_s))


def _unaware(name: str, choose: Callable[[float, int], Option], bandwidth: Bandwidth, setting: Setting) -> Run:
    run, now, end = Run(name), 0.0, min(setting.duration_s, bandwidth.duration_s)
    chance = _Chance(setting)
    while now < end:
        burst = _Burst(now, setting.samples)
        while burst.left:
            option = choose(now, burst.left)
            now, energy = _end(chance.of(option), now, bandwidth, setting)
            if option.cuts:
                now += chance.sent_s(option.hosts_s[0])
            burst.did(option, now, energy)
        run.requests.append(burst.request())
        now = max(now, burst.begun + setting.every_s)
    return run


class _Burst:
    """Samples that came at once, on the way to their results."""

    def __init__(self, begun: float, samples: int) -> None:
        self.left = samples
        self.begun, self._samples = begun, samples
        self._seconds = self._energy = 0.0
        self._names: list[str] = []
        self._fell_back = False

    def did(self, option: Option, done: float, energy: float, fell_back: bool = False) -> None:
        """A batch is done."""
        count = min(option.batch, self.left)
        self._seconds += count * (done - self.begun)
        self._energy += energy
        self.left -= count
        self._names.append(option.name if self._samples == 1 else f"{option.name} x{option.batch}")
        self._fell_back |= fell_back

    def request(self) -> Request:
        """All of it."""
        name = ", ".join(dict.fromkeys(self._names))
        return Request(self.begun, self._seconds / self._samples, name, self._fell_back, self._energy)


class _Client:
    """One client on one link: requests one after another, probes beside what the device computes."""

    def __init__(self, policy: Policy, bandwidth: Bandwidth, setting: Setting) -> None:
        if policy.table.hops > 1 and setting.beyond is None:
            raise InputError("a trace is of one hop; say what the second is, or leave out the profile behind it")
        self.bandwidth, self.setting = bandwidth, setting
        self.link = LinkEstimator(setting.link)
        self.planner = Planner(policy, self.link, power=setting.objective.power)
        if setting.beyond is not None:
            self.planner.link_beyond(setting.beyond)
        self.result = Run(policy.name)
        self._chance = _Chance(setting)
        for _ in range(TINY_PROBES):
            self.link.round_trip(setting.rtt_s + self._chance.sent_s(math.inf), 0.0)
        self._free = 0.0  # when the link has carried all that was sent
        self._answers: list[tuple[float, int, Ticket, float]] = []  # not yet seen: time, order, ticket, held

    def run(self) -> Run:
        """Until the trace or the setting ends."""
        end = min(self.setting.duration_s, self.bandwidth.duration_s)
        self._probe(0.0)  # a client probes when it connects, and waits for it before its first request
        now = min(self._answers[0][0], CONNECT_S) if self._answers else 0.0
        while now < end or not self.result.requests:
            burst = _Burst(now, self.setting.samples)
            while burst.left:
                now = self._batch(now, burst)
            self.result.requests.append(burst.request())
            if burst.begun + self.setting.every_s > now:
                now = self._idle(now, burst.begun + self.setting.every_s)
        return self.result

    def _idle(self, now: float, until: float) -> float:
        """Until the next request; answers arrive and probes go out."""
        while now < until:
            self._deliver(now)
            self._probe(now)
            now = min(now + PROBE_TICK_S, until, *(one[0] for one in self._answers[:1]))
        return until

    def _batch(self, now: float, burst: _Burst) -> float:
        """One batch; returns when it is done."""
        power = self.setting.objective.power
        self._deliver(now)
        self._probe(now)
        before = time.perf_counter()
        choice = self.planner.decide(now, burst.left)
        self.result.decision_s.append(time.perf_counter() - before)
        option = self._chance.of(choice.option)
        sent_at = now + option.hosts_s[0]
        if not option.cuts:
            done = self._meanwhile(now, sent_at, option.batch)
            if done >= sent_at:
                self.planner.live.computed(0, done - now, choice.option.hosts_s[0])
            burst.did(option, done, (done - now) * power.compute_w)
            return done
        self.planner.live.computed(0, option.hosts_s[0], choice.option.hosts_s[0])
        self._deliver(sent_at)
        ticket = self.planner.sending(sent_at, choice)
        late = self._chance.sent_s(choice.option.hosts_s[0])
        answer = self._send(sent_at, option.coded_bytes[0], ticket, _held_s(option, self.setting), late)
        gone, done = self._free, answer
        if answer > ticket.overdue_at:
            done = min(answer, ticket.overdue_at + option.rest_s)
        fell_back = done < answer
        waited = min(done, ticket.overdue_at) - sent_at
        sending = min(waited, gone - sent_at)
        energy = sending * power.transmit_w + (waited - sending) * power.idle_w
        energy += (option.hosts_s[0] + done - sent_at - waited) * power.compute_w
        burst.did(option, done, energy, fell_back)
        return done

    def _send(self, now: float, count: float, ticket: Ticket, held_s: float, late_s: float = 0.0) -> float:
        """Put bytes on the link; returns when their answer is here, `late_s` after it could be."""
        self._free = self.bandwidth.finish(max(now, self._free), count * self.setting.overhead)
        answer = self._free + self.setting.rtt_s + held_s + late_s
        heapq.heappush(self._answers, (answer, ticket.number, ticket, held_s))
        return answer

    def _deliver(self, now: float) -> bool:
        """Whether anything came."""
        came = False
        while self._answers and self._answers[0][0] <= now:
            at, _, ticket, held_s = heapq.heappop(self._answers)
            self.planner.answered(at, ticket, held_s)
            came = True
        return came

    def _probe(self, now: float) -> float:
        """Send one if it is due; returns what it takes of the device's time."""
        size = self.planner.probe_due(now)
        if size is None:
            if not self.planner.trip_due(now):
                return 0.0
            self.link.round_trip(self.setting.rtt_s + self._chance.sent_s(math.inf), now)
            return self.setting.probe_s
        power, begun = self.setting.objective.power, max(now, self._free)
        self._send(now, size, self.planner.probing(now, size), 0.0, self._chance.sent_s(math.inf))
        self.result.probe_bytes += size
        self.result.probe_j += (self._free - begun) * max(0.0, power.transmit_w - power.idle_w)
        return self.setting.probe_s

    def _meanwhile(self, now: float, until: float, batch: int) -> float:
        """The device computes; answers arrive and probes go out. Returns when a result is there."""
        at, answer = now, math.inf
        while at < min(until, answer):
            if self._deliver(at) and answer == math.inf:
                choice = self.planner.second_thought(at, until - at, batch)
                if choice is not None:
                    option = choice.option
                    until += option.hosts_s[0]  # to encode it takes the device's time
                    sent_at = at + option.hosts_s[0]
                    ticket = self.planner.sending(sent_at, choice)
                    answer = self._send(sent_at, option.coded_bytes[0], ticket, _held_s(option, self.setting))
            until += self._probe(at)
            at = min(at + PROBE_TICK_S, self._answers[0][0]) if self._answers else at + PROBE_TICK_S
        done = min(until, answer)
        self._deliver(done)
        return done
