"""`remote`: everything on the host, full offloading ("edge computing" in the survey's words)."""

from __future__ import annotations

from collections.abc import Sequence

from fogline.common.split.options import Option
from fogline.common.split.policies.base import Choice, Policy, Situation, first, register
from fogline.common.split.profile import INPUT


@register
class Remote(Policy):
    """Sends the input. By default one byte for each element, which is what an image has before it is scaled."""

    name = "remote"
    adaptive = False

    def __init__(self, options: Sequence[Option], codec: str = "int8") -> None:
        super().__init__([first(options, self.name, INPUT, codec)])

    def choose(self, situation: Situation) -> Choice:
        """Everything there."""
        return Choice(self.table.options[0], "remote")
