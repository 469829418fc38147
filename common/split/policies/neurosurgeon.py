"""`neurosurgeon`: the best single cut by predicted latency or energy (Kang et al., ASPLOS 2017).

As there: every cut is a candidate, tensors go as they are, the server's load scales its part, and the prediction is
compute + bytes ÷ rate, without round trip or coding. Apart from there: times are measured at each cut, where the
paper fits regressions to layer types, because the cuts of one model are few enough to be measured.
"""

from __future__ import annotations

from collections.abc import Sequence

from fogline.common.split.link import LinkEstimate
from fogline.common.split.options import Option
from fogline.common.split.policies.base import Choice, Objective, Policy, Situation, register


@register
class Neurosurgeon(Policy):
    """Arg-min over all cuts with raw tensors."""

    name = "neurosurgeon"

    def __init__(self, options: Sequence[Option], objective: str = "latency") -> None:
        self._objective = Objective(objective)
        super().__init__([one for one in options if not one.cuts or (len(one.cuts) == 1 and one.codecs == ("raw",))])

    def choose(self, situation: Situation) -> Choice:
        """The arg-min; local where the link is not usable."""
        links = [LinkEstimate.stated(link.rate_bit_s or 0.0) for link in situation.links]
        cost = self._objective.cost(self.table, links, situation.load)
        best = cost.index(min(cost))
        return Choice(self.table.options[best], f"least {self._objective.kind}", cost[best])
