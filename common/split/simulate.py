"""Split policies over a recorded link, request after request. Deterministic: no clock, no socket, no tensor.

A transfer takes as long as the trace needs to carry its bytes, in the order of sending; the result comes back after
half a round trip each way, over a downlink that is not the narrow one. What a policy knows is what a client would: the
times of its own answers and probes. Bytes whose result is no longer waited for still go through and hold up the next.
The oracle looks at the trace itself and takes the option that ends first, for each request anew.

All policies have the same seconds of the trace, so the mean latency (seconds ÷ requests done) is throughput, too.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fogline.common.errors import InputError
from fogline.common.split.bandwidth import Bandwidth
from fogline.common.split.link import LinkEstimator, LinkSettings
from fogline.common.split.options import Option, pareto
from fogline.common.split.planner import Planner, Ticket
from fogline.common.split.policies.base import Policy

CONNECT_S = 1.0  # how long a first request waits for the probe of a fresh connection, at most
PROBE_TICK_S = 0.05  # how often a device that computes looks whether a probe is due


@dataclass(frozen=True)
class Setting:
    """What a simulation assumes. `overhead`: bytes on the wire ÷ coded bytes; `duration_s`: of each trace, at most."""

    rtt_s: float = 0.02
    duration_s: float = 300.0
    overhead: float = 1.0
    link: LinkSettings = field(default_factory=LinkSettings)

    def __post_init__(self) -> None:
        """Raise InputError for what no link has."""
        for name, least in (("rtt_s", 0.0), ("duration_s", 0.001), ("overhead", 1.0)):
            value = getattr(self, name)
            if not (value >= least and math.isfinite(value)):
                raise InputError(f"{name} {value}; give {least:g} or more")


@dataclass(frozen=True)
class Request:
    """One request as it went: begin and latency in seconds on the trace's clock."""

    begun: float
    latency_s: float
    option: str
    fell_back: bool = False


@dataclass
class Run:
    """All requests of one policy over one trace. `decision_s`: seconds on this host for each decision, in order."""

    policy: str
    requests: list[Request] = field(default_factory=list)
    decision_s: list[float] = field(default_factory=list)
    probe_bytes: int = 0

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
    return _unaware(option.name, lambda now: option, bandwidth, setting)


def oracle(options: Sequence[Option], bandwidth: Bandwidth, setting: Setting) -> Run:
    """For each request the option that ends first, knowing the trace."""
    candidates = pareto(options)
    return _unaware(
        "oracle",
        lambda now: min(candidates, key=lambda one: _end(one, now, bandwidth, setting)),
        bandwidth,
        setting,
    )


def best_fixed(options: Sequence[Option], bandwidth: Bandwidth, setting: Setting) -> tuple[Option, Run]:
    """The option that is best over the whole trace, by mean latency; known only afterwards."""
    runs = [(one, fixed(one, bandwidth, setting)) for one in pareto(options)]
    return min(runs, key=lambda pair: pair[1].mean_s)


def planned(policy: Policy, bandwidth: Bandwidth, setting: Setting) -> Run:
    """A policy that sees what a client sees."""
    return _Client(policy, bandwidth, setting).run()


def _end(option: Option, now: float, bandwidth: Bandwidth, setting: Setting) -> float:
    """When a request that begins now ends on an otherwise idle link."""
    at = now + option.hosts_s[0]
    if not option.cuts:
        return at
    return bandwidth.finish(at, option.coded_bytes[0] * setting.overhead) + setting.rtt_s + option.hosts_s[1]


def _unaware(name: str, choose: Callable[[float], Option], bandwidth: Bandwidth, setting: Setting) -> Run:
    run, now, end = Run(name), 0.0, min(setting.duration_s, bandwidth.duration_s)
    while now < end:
        option = choose(now)
        done = _end(option, now, bandwidth, setting)
        run.requests.append(Request(now, done - now, option.name))
        now = done
    return run


class _Client:
    """One client on one link: requests one after another, probes beside what the device computes."""

    def __init__(self, policy: Policy, bandwidth: Bandwidth, setting: Setting) -> None:
        if policy.table.hops > 1:
            raise InputError("a trace is of one hop; simulate with the profiles of a device and one host")
        self.bandwidth, self.setting = bandwidth, setting
        self.link = LinkEstimator(setting.link)
        self.link.round_trip(setting.rtt_s)  # of the handshake
        self.planner = Planner(policy, self.link)
        self.result = Run(policy.name)
        self._free = 0.0  # when the link has carried all that was sent
        self._answers: list[tuple[float, int, Ticket, float]] = []  # not yet seen: time, order, ticket, held

    def run(self) -> Run:
        """Until the trace or the setting ends."""
        end = min(self.setting.duration_s, self.bandwidth.duration_s)
        self._probe(0.0)  # a client probes when it connects, and waits for it before its first request
        now = min(self._answers[0][0], CONNECT_S) if self._answers else 0.0
        while now < end or not self.result.requests:
            self._deliver(now)
            self._probe(now)
            before = time.perf_counter()
            choice = self.planner.decide(now)
            self.result.decision_s.append(time.perf_counter() - before)
            option = choice.option
            sent_at = now + option.hosts_s[0]
            if not option.cuts:
                done, fell_back = self._meanwhile(now, sent_at), False
            else:
                self._deliver(sent_at)
                ticket = self.planner.sending(sent_at, choice)
                answer = self._send(sent_at, option.coded_bytes[0], ticket, option.hosts_s[1])
                done, fell_back = answer, False
                if answer > ticket.overdue_at:
                    done = min(answer, ticket.overdue_at + option.rest_s)
                    fell_back = done < answer
            self.result.requests.append(Request(now, done - now, option.name, fell_back))
            now = done
        return self.result

    def _send(self, now: float, count: float, ticket: Ticket, held_s: float) -> float:
        """Put bytes on the link; returns when their answer is here."""
        self._free = self.bandwidth.finish(max(now, self._free), count * self.setting.overhead)
        answer = self._free + self.setting.rtt_s + held_s
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

    def _probe(self, now: float) -> None:
        size = self.planner.probe_due(now)
        if size is not None:
            self.result.probe_bytes += size
            self._send(now, size, self.planner.probing(now, size), 0.0)

    def _meanwhile(self, now: float, until: float) -> float:
        """The device computes; answers arrive and probes go out. Returns when a result is there."""
        at, answer = now, math.inf
        while at < min(until, answer):
            if self._deliver(at) and answer == math.inf:
                choice = self.planner.second_thought(at, until - at)
                if choice is not None:
                    option = choice.option
                    until += option.hosts_s[0]  # to encode it takes the device's time
                    sent_at = at + option.hosts_s[0]
                    ticket = self.planner.sending(sent_at, choice)
                    answer = self._send(sent_at, option.coded_bytes[0], ticket, option.hosts_s[1])
            self._probe(at)
            at = min(at + PROBE_TICK_S, self._answers[0][0]) if self._answers else at + PROBE_TICK_S
        done = min(until, answer)
        self._deliver(done)
        return done
