"""`local`: everything on the device."""

from __future__ import annotations

from collections.abc import Sequence

from fogline.common.split.options import Option
from fogline.common.split.policies.base import Choice, Policy, Situation, register


@register
class Local(Policy):
    """Never uses a link."""

    name = "local"
    adaptive = False

    def __init__(self, options: Sequence[Option]) -> None:
        super().__init__([one for one in options if not one.cuts])

    def choose(self, situation: Situation) -> Choice:
        """Everything here."""
        return Choice(self.table.options[0], "local")
