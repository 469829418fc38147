"""`fixed`: one cut and one codec, whatever happens."""

from __future__ import annotations

from collections.abc import Sequence

from fogline.common.split.options import Option
from fogline.common.split.policies.base import Choice, Policy, Situation, first, register


@register
class Fixed(Policy):
    """Always the same option. Raises ConfigError where it was not measured."""

    name = "fixed"
    adaptive = False

    def __init__(self, options: Sequence[Option], cut: str = "local", codec: str | None = None) -> None:
        """`cut` is a cut's name, `input` or `local`."""
        super().__init__([first(options, self.name, cut, codec)])

    def choose(self, situation: Situation) -> Choice:
        """The one there is."""
        return Choice(self.table.options[0], "fixed")
