"""The planner of one client: what it is told, what it decides, and what it weighed. Sans-IO; times are seconds.

    choice = planner.decide(now)
    compute the head, encode;   ticket = planner.sending(now, choice)
    on the answer:              planner.answered(now, ticket, held_s=…)
    at ticket.overdue_at:       compute the rest here as well; the first result counts
    meanwhile, and when idle:   size = planner.probe_due(now); planner.probing(now, size) … planner.probed(now, …)
                                and where planner.trip_due(now): planner.link.round_trip(seconds, now)
    while all is computed here: choice = planner.second_thought(now, remaining), after each answer and probe

Only the first hop is observed by the client; the estimate of a second hop is what the host in between reports.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fogline.common.split.link import LinkEstimate, LinkEstimator
from fogline.common.split.live import LiveLoad
from fogline.common.split.options import Power, Terms
from fogline.common.split.policies.base import Choice, Policy, Situation


@dataclass(frozen=True)
class Ticket:
    """A batch or probe on its way. `overdue_at`: when to begin to compute the rest here; infinite for never."""

    number: int
    begun: float
    overdue_at: float = math.inf


@dataclass(frozen=True)
class Explanation:
    """A decision with all that was weighed, cheapest first by latency."""

    choice: Choice
    links: tuple[LinkEstimate, ...]
    weighed: tuple[Terms, ...]


class Planner:
    """A policy with what it needs to know: the link's estimate and the hosts' load."""

    def __init__(
        self, policy: Policy, link: LinkEstimator, live: LiveLoad | None = None, power: Power | None = None
    ) -> None:
        self.policy = policy
        self.link = link
        self.live = live or LiveLoad()
        self._power = power or Power()
        self._beyond: tuple[LinkEstimate, ...] = ()
        self._asked = -1  # the link's events when `_due` was found, which is when a probe is due
        self._due = -math.inf

    def link_beyond(self, estimate: LinkEstimate) -> None:
        """What the host behind the first hop reports of its own link to the next."""
        self._beyond = (estimate,)

    def decide(self, now: float, pending: int = 1) -> Choice:
        """Where the next batch is computed."""
        return self.policy.choose(self._situation(now, pending))

    def explain(self, now: float, pending: int = 1) -> Explanation:
        """Decide, and say what each option would have cost."""
        situation = self._situation(now, pending)
        choice = self.policy.choose(situation)
        table = self.policy.table
        weighed = [
            table.terms(index, situation.links, situation.load, self._power) for index in range(len(table.options))
        ]
        return Explanation(choice, situation.links, tuple(sorted(weighed, key=lambda one: one.latency_s)))

    def second_thought(self, now: float, remaining_s: float, batch: int = 1) -> Choice | None:
        """What to send beside a batch that the device computes whole, for `remaining_s` more; None for nothing.

        Worth asking after each acknowledgement and probe. The first result counts.
        """
        return self.policy.second_thought(self._situation(now, batch), remaining_s)

    def sending(self, now: float, choice: Choice) -> Ticket:
        """The coded bytes of a choice are handed to the link now."""
        number = self.link.begin(now, max(1, round(choice.option.coded_bytes[0])))
        return Ticket(number, now, math.inf if choice.deadline_s is None else now + choice.deadline_s)

    def answered(self, now: float, ticket: Ticket, held_s: float) -> None:
        """Its result is here; the host held it for `held_s`, queue and computing together."""
        self.link.acknowledge(now, ticket.number, held_s=held_s)

    def probe_due(self, now: float) -> int | None:
        """Bytes of a probe that should go out now over the idle link; None for none."""
        if now < self.probe_at(now):
            return None
        return self.link.probe_size(self._worth(now))

    def probe_at(self, now: float) -> float:
        """When to ask for a probe again, if nothing is heard of the link before; infinite for not before that."""
        if not self.policy.adaptive:
            return math.inf
        if self._asked != self.link.events:
            soonest = self.link.soonest_probe
            if now < soonest:
                return soonest
            self._asked, self._due = self.link.events, self.link.probe_at(self._worth(now))
        return self._due

    def trip_due(self, now: float) -> bool:
        """Whether a message of one byte should go out now, whose answer is told to `link.round_trip`."""
        return self.policy.adaptive and self.link.trip_due(now)

    def _worth(self, now: float) -> float | None:
        return self.policy.worth_bit_s(self.live.load, self.link.estimate(now).rtt_s)

    def probing(self, now: float, size: int) -> Ticket:
        """A probe goes out."""
        self.link.probing(now)
        return Ticket(self.link.begin(now, size), now)

    def probed(self, now: float, ticket: Ticket, held_s: float = 0.0) -> None:
        """A probe came back."""
        self.link.acknowledge(now, ticket.number, held_s=held_s)

    def _situation(self, now: float, pending: int) -> Situation:
        return Situation(now, (self.link.estimate(now), *self._beyond), self.live.load, pending)
