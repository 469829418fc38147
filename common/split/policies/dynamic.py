"""`dynamic`: Dynamic Split Computing (Bakhtiarnia et al., ICASSP 2023, arXiv 2205.11269), as published.

At data rate R the least of
    T_device                            no offloading
    T_server + elements ÷ R             full offloading, one byte for each element of the input
    T_head + T_tail + elements·c·β ÷ R  for each compressive natural bottleneck, β bytes for each element
from a measured table. No round trip, no coding time, no queue, no threshold: the original has none of these.
"""

from __future__ import annotations

from collections.abc import Sequence

from fogline.common.split.options import Load, Option
from fogline.common.split.policies.base import Choice, Policy, Situation, register
from fogline.common.split.profile import INPUT


@register
class Dynamic(Policy):
    """Arg-min over local, full offloading and compressive natural bottlenecks."""

    name = "dynamic"

    def __init__(self, options: Sequence[Option], feature_codec: str = "raw", input_codec: str = "int8") -> None:
        least, chosen = 1.0, []
        for one in options:
            if not one.cuts or (one.cuts == (INPUT,) and one.codecs == (input_codec,)):
                chosen.append(one)
            elif len(one.cuts) == 1 and one.codecs == (feature_codec,) and one.ratio < least:
                chosen.append(one)
                least = one.ratio
        super().__init__(chosen)
        # The paper's times are of head and tail alone.
        self._rows = [
            (sum(one.hosts_s) - (sum(one.coding_s[0]) if one.coding_s else 0.0), sum(one.coded_bytes[:1]))
            for one in self.table.options
        ]

    def choose(self, situation: Situation) -> Choice:
        """The arg-min; local where there is no rate."""
        link = situation.links[0]
        if not link.usable:
            if self.table.local is not None:
                return Choice(self.table.options[self.table.local], f"the link is {link.state.value}")
            least = min(range(len(self._rows)), key=lambda index: self._rows[index][1])
            return Choice(self.table.options[least], f"the link is {link.state.value}: least bytes")
        per_byte = link.seconds_per_byte
        cost = [compute + count * per_byte for compute, count in self._rows]
        best = cost.index(min(cost))
        return Choice(self.table.options[best], "least latency", cost[best])

    def worth_bit_s(self, load: Load, rtt_s: float) -> float | None:
        """By the paper's own formula, which knows neither load nor round trip."""
        return super().worth_bit_s(Load(), 0.0)
