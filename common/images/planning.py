"""Which image codec a camera should have, from measured figures. Pure logic: no clock, no codec, no disk.

A candidate is admitted when it reaches the stated background and object quality. Among those admitted the cheapest
wins, by one of two costs (Residual-INR's communication model, with the coder's and the decoder's time beside it):

    bytes:  n (record + shared / frames)                                    what the fog node sends for one image
    time:   encode + 8 n (record + shared / frames) / downlink + decode     until the last of n receivers can use it

What is the same for all candidates (the upload) is left out of the comparison, and so can't dilute it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Objective = Literal["time", "bytes"]

DEFAULT_RATE_BIT_S = 16e6  # assumed where a link was not measured: the 2 MB/s radio of Residual-INR
MARGIN = 0.05  # a challenger must be cheaper than the codec in use by this share, so that noise does not flap
SLACK_DB = 0.3  # and the codec in use may fall short of the stated quality by this


@dataclass(frozen=True)
class Goal:
    """What is asked for. PSNR in dB against what the fog node received, at the coded size, means over images."""

    objective: Objective = "bytes"
    background_db: float = 28.0
    object_db: float = 35.0


@dataclass(frozen=True)
class Link:
    """Who receives, and how fast. Rates in bit/s; None where not measured."""

    receivers: int = 1
    downlink_bit_s: float | None = None  # of the fog node, shared by all receivers
    uplink_bit_s: float | None = None

    @property
    def n(self) -> int:
        """Receivers to plan for: at least one, since a device that comes later fetches what it missed."""
        return max(1, self.receivers)


@dataclass(frozen=True)
class Figures:
    """What one candidate was measured to do on a camera's frames, means per image."""

    codec: str
    params: Mapping[str, Any]
    frames: int  # that it was measured on
    record_bytes: float
    encode_s: float
    background_db: float | None  # None where boxes cover every frame
    object_db: float | None  # None without boxes
    decode_s: float | None = None  # on the host that measured; None where unknown
    shared_bytes: float = 0.0  # sent once to each receiver
    shared_frames: float = 1.0  # over how many images that is expected to be spread

    @property
    def delivered_bytes(self) -> float:
        """Bytes of one image to one receiver, its share of the shared state included."""
        return self.record_bytes + self.shared_bytes / max(1.0, self.shared_frames)

    def shortfall_db(self, goal: Goal) -> float:
        """By how much it misses the stated quality, at worst of background and objects; 0 where it does not."""
        pairs = ((self.background_db, goal.background_db), (self.object_db, goal.object_db))
        return max(0.0, *(wanted - got for got, wanted in pairs if got is not None), 0.0)


@dataclass(frozen=True)
class Dropped:
    """A candidate that could not be measured to the end, and why."""

    codec: str
    reason: str


@dataclass(frozen=True)
class Cost:
    """The cost terms of one image to all receivers."""

    encode_s: float
    downlink_s: float
    decode_s: float  # 0 where unknown
    downlink_bytes: float

    @property
    def delivery_s(self) -> float:
        """From the image at the fog node to the last receiver that can use it, links otherwise idle."""
        return self.encode_s + self.downlink_s + self.decode_s

    def value(self, objective: Objective) -> float:
        """What is minimised: seconds or bytes."""
        return self.delivery_s if objective == "time" else self.downlink_bytes


@dataclass(frozen=True)
class Weighed:
    """One candidate as the planner saw it. `reason` says why it was chosen or not."""

    figures: Figures
    cost: Cost
    shortfall_db: float
    chosen: bool
    reason: str


@dataclass(frozen=True)
class Decision:
    """A choice with everything that led to it."""

    goal: Goal
    link: Link
    codec: str
    params: Mapping[str, Any]
    reason: str
    weighed: tuple[Weighed, ...] = field(default=())  # cheapest first
    dropped: tuple[Dropped, ...] = field(default=())


@dataclass(frozen=True)
class Situation:
    """What the encoder can't see by itself: who receives which camera, and how fast the links are, in bit/s."""

    receivers: Mapping[str, int] = field(default_factory=dict)  # by camera
    downlink_bit_s: float | None = None
    uplink_bit_s: float | None = None
    cautious: bool = False  # these images failed before: no trials, which may have been what ended the process


@dataclass(frozen=True)
class Choice:
    """A camera's codec from now on. `changed` is false where only what speaks for it has changed."""

    camera: str
    width: int
    height: int
    decision: Decision
    changed: bool


def cost_of(figures: Figures, link: Link) -> Cost:
    """The cost terms of a candidate; an unmeasured downlink counts as `DEFAULT_RATE_BIT_S`."""
    sent = link.n * figures.delivered_bytes
    rate = link.downlink_bit_s or DEFAULT_RATE_BIT_S
    return Cost(figures.encode_s, 8 * sent / rate, figures.decode_s or 0.0, sent)


def decide(
    goal: Goal, link: Link, candidates: Sequence[Figures], dropped: Sequence[Dropped] = (), incumbent: str | None = None
) -> Decision | None:
    """Choose among candidates, each codec at most once; None when there are none.

    The codec in use, `incumbent`, stays unless it misses the quality by more than `SLACK_DB` or another is cheaper by
    more than `MARGIN`. When no candidate reaches the quality, the one that misses it least is chosen.
    """
    if not candidates:
        return None
    costs = {one.codec: cost_of(one, link) for one in candidates}

    def value(one: Figures) -> float:
        return costs[one.codec].value(goal.objective)

    def short(one: Figures) -> float:
        return one.shortfall_db(goal)

    held = next((one for one in candidates if one.codec == incumbent), None)
    admitted = [one for one in candidates if short(one) == 0 or (one is held and short(one) <= SLACK_DB)]
    if admitted:
        chosen = best = min(admitted, key=lambda one: (value(one), one.codec))
        if held in admitted and value(best) >= (1 - MARGIN) * value(held):
            chosen = held
        reason = _why(chosen, best, len(admitted), goal, link, costs)
    else:
        chosen = min(candidates, key=lambda one: (short(one), value(one), one.codec))
        reason = f"none reaches the stated quality; this one misses it least, by {short(chosen):.1f} dB"
    ranked = sorted(candidates, key=lambda one: (one not in admitted, value(one), one.codec))
    weighed = tuple(
        Weighed(
            one,
            costs[one.codec],
            short(one),
            one is chosen,
            reason if one is chosen else _why_not(one, chosen, one in admitted, goal, costs),
        )
        for one in ranked
    )
    return Decision(goal, link, chosen.codec, chosen.params, reason, weighed, tuple(dropped))


def _why(chosen: Figures, best: Figures, admitted: int, goal: Goal, link: Link, costs: Mapping[str, Cost]) -> str:
    amount = f"{_amount(costs[chosen.codec], goal.objective)} an image to {link.n} receiver{'s' if link.n > 1 else ''}"
    if goal.objective == "time":
        assumed = "" if link.downlink_bit_s else " (assumed)"
        amount += f" at {(link.downlink_bit_s or DEFAULT_RATE_BIT_S) / 1e6:.3g} Mbit/s{assumed}"
    if chosen is not best:
        return f"in use, {amount}; {best.codec} is cheaper by less than {MARGIN:.0%}"
    if admitted == 1:
        return f"the only one that reaches the stated quality, {amount}"
    return f"least {goal.objective}, {amount}"


def _why_not(one: Figures, chosen: Figures, admitted: bool, goal: Goal, costs: Mapping[str, Cost]) -> str:
    if not admitted:
        parts = (("background", one.background_db, goal.background_db), ("objects", one.object_db, goal.object_db))
        missed = [f"{name} {got:.1f} of {asked:g} dB" for name, got, asked in parts if got is not None and got < asked]
        return "misses the stated quality: " + ", ".join(missed)
    mine, theirs = costs[one.codec].value(goal.objective), costs[chosen.codec].value(goal.objective)
    if mine < theirs:
        return f"cheaper than {chosen.codec}, which is in use, by less than {MARGIN:.0%}"
    if mine == theirs:
        return f"no cheaper than {chosen.codec}"
    return f"{mine / theirs:.2f} times the {goal.objective} of {chosen.codec}"


def _amount(cost: Cost, objective: Objective) -> str:
    return f"{1000 * cost.delivery_s:.1f} ms" if objective == "time" else f"{cost.downlink_bytes:,.0f} bytes"
