"""`joint`: cut(s), codec and batch chosen together, under an accuracy budget, for least latency or energy.

Where it goes beyond `dynamic`: every cut and codec with its measured size, coding time and accuracy; the round trip;
bytes that are still under way; hosts as loaded as they are now; hysteresis; and a way back when the link dies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fogline.common.errors import ConfigError
from fogline.common.split.options import Option, Power, pareto
from fogline.common.split.policies.base import Choice, Objective, Policy, Situation, register
from fogline.common.split.profile import INPUT

SECOND_THOUGHT = 0.15  # share of the remaining time that must be gained: the device's work is not lost, but doubled


@register
class Joint(Policy):
    """Arg-min over all that the accuracy budget allows, changed only where it gains.

    `min_gain`: share by which another option must be cheaper than the one in use. `dwell_s`: within this time of a
    change it must gain four times as much. `patience`: how long to wait for an answer, in expected times, before the
    device begins to compute the rest itself; `min_wait_s` at least. `power`: watts for the energy objective.
    Raises ConfigError for parameters outside of their ranges, or where the budget leaves nothing.
    """

    name = "joint"

    def __init__(
        self,
        options: Sequence[Option],
        objective: str = "latency",
        accuracy_budget: float = 0.01,
        min_gain: float = 0.02,
        dwell_s: float = 0.1,
        patience: float = 1.25,
        min_wait_s: float = 0.02,
        power: Power | None = None,
    ) -> None:
        for name, value, least in (
            ("accuracy_budget", accuracy_budget, 0.0),
            ("min_gain", min_gain, 0.0),
            ("dwell_s", dwell_s, 0.0),
            ("patience", patience, 1.0),
            ("min_wait_s", min_wait_s, 0.0),
        ):
            if not (value >= least and math.isfinite(value)):
                raise ConfigError(f"policy joint: {name} {value}; give {least:g} or more")
        if min_gain >= 0.25:
            raise ConfigError(f"policy joint: min_gain {min_gain}; give less than 0.25, or nothing ever changes")
        self._objective = Objective(objective, power or Power())
        self._reason = f"least {objective}"
        self._min_gain, self._dwell_s = min_gain, dwell_s
        self._patience, self._min_wait_s = patience, min_wait_s
        allowed = [one for one in options if one.accuracy_drop <= accuracy_budget]
        if options and not allowed:
            raise ConfigError(
                f"policy joint: every option loses more than the accuracy budget of {accuracy_budget}; "
                "raise it, or measure codecs that lose less"
            )
        super().__init__(
            pareto(allowed, min_gain / 4)
        )  # fewer to weigh, and nothing that hysteresis would ever change to
        self._batches = sorted({one.batch for one in self.table.options})
        self._inputs = [index for index, one in enumerate(self.table.options) if one.cuts[:1] == (INPUT,)]
        self._held: int | None = None
        self._since = -math.inf

    def choose(self, situation: Situation) -> Choice:
        """The arg-min with hysteresis."""
        table = self.table
        cost = self._objective.cost(table, situation.links, situation.load)
        plain = self._objective.kind == "latency" and len(self._batches) == 1
        if len(self._batches) > 1:
            cost = self._by_batch(cost, situation.pending)
        least = min(cost)
        if not least < math.inf:
            return self._without_link(situation)
        best, reason = cost.index(least), self._reason
        held = self._held
        if held is not None and held != best:
            recent = situation.now - self._since < self._dwell_s
            gain = 1.0 - least / cost[held] if cost[held] < math.inf else 1.0
            if gain < self._min_gain * (4 if recent else 1):
                best, reason = held, "in use; none gains enough"
        if best != held:
            self._held, self._since = best, situation.now
        option = table.options[best]
        if not option.cuts:
            if not situation.links or not situation.links[0].usable:
                reason = f"the link is {situation.links[0].state.value}" if situation.links else "there is no link"
            return Choice(option, reason, table.device_s[best] * situation.load.factors[0])
        latency = cost if plain else table.latency_s(situation.links, situation.load)
        return self._with_deadline(best, situation, latency[best], reason)

    def second_thought(self, situation: Situation, remaining_s: float) -> Choice | None:
        """Send the input where that ends well before the device does: the link has come back meanwhile."""
        if self._objective.kind != "latency" or not situation.links[0].usable:
            return None
        many, table = len(self._batches) > 1, self.table
        fit = [one for one in self._inputs if not many or table.batch[one] == situation.pending]
        if not fit:
            return None
        cost = table.latency_s(situation.links, situation.load)
        best = min(fit, key=cost.__getitem__)
        if cost[best] > (1 - SECOND_THOUGHT) * remaining_s:
            return None
        return Choice(table.options[best], "the link is back", cost[best])

    def _with_deadline(self, index: int, situation: Situation, latency_s: float, reason: str) -> Choice:
        deadline = None
        if self.table.local is not None:
            device = self.table.device_s[index] * situation.load.factors[0]
            jitter_s = situation.links[0].jitter_s
            deadline = max(self._patience * (latency_s - device) + 4 * jitter_s, self._min_wait_s)
        return Choice(self.table.options[index], reason, latency_s, deadline)

    def _without_link(self, situation: Situation) -> Choice:
        """No option can be run now and the device can't do it alone: the least bytes have the best chance."""
        index = min(range(len(self.table.options)), key=lambda one: self.table.bytes[one][0])
        self._held = index
        return Choice(self.table.options[index], f"the link is {situation.links[0].state.value}: least bytes")

    def _by_batch(self, cost: list[float], pending: int) -> list[float]:
        """Mean time until the waiting samples are done, batch after batch; energy is by sample."""
        most, waiting = max(pending, self._batches[0]), max(pending, 1)
        if self._objective.kind == "energy":
            return [one / size if size <= most else math.inf for one, size in zip(cost, self.table.batch, strict=True)]
        return [
            one * (math.ceil(waiting / size) + 1) / 2 if size <= most else math.inf
            for one, size in zip(cost, self.table.batch, strict=True)
        ]
