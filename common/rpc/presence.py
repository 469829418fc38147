"""Two agents with one identity: the one that was here first goes on, the other is refused and told why.

An agent that starts again is no other agent: it says the same instance, which is made of its data folder and of the
boot of its host. Were the newest to win, a copied disk would push the working camera out, and both for ever each
other. Pure logic: claims and times in, verdicts out.
"""

from __future__ import annotations

from dataclasses import dataclass

KEPT = 65_536  # names remembered
TOLD_S = 60.0  # how long a conflict is told of


@dataclass
class _Holder:
    instance: str
    address: str
    running: int = 0  # calls
    seen: float = 0.0


@dataclass(frozen=True)
class Conflict:
    """Who holds the name, and who wanted it too."""

    name: str
    holder: str  # address
    refused: str
    new: bool  # not told of within the last minute


class Presence:
    """Who holds which name. `hold_s`: how long after its last call; longer than the pause between its calls."""

    def __init__(self, hold_s: float = 3.0) -> None:
        self._hold_s = hold_s
        self._holders: dict[str, _Holder] = {}
        self._conflicts: dict[str, tuple[float, str, str]] = {}  # when, whose instance, from where

    def claim(self, name: str, instance: str, address: str, now: float) -> Conflict | None:
        """A call begins; None: it may. Every claim that may is followed by a `release`."""
        holder = self._holders.get(name)
        if holder is not None and holder.instance != instance:
            if holder.running or now - holder.seen < self._hold_s:
                told = self._conflicts.get(name)
                new = told is None or told[1] != instance or now - told[0] > TOLD_S
                self._conflicts[name] = (now if new or told is None else told[0], instance, address)
                return Conflict(name, holder.address, address, new)
            holder = None
        if holder is None:
            if len(self._holders) >= KEPT:
                self._forget(now)
            holder = self._holders[name] = _Holder(instance, address)
        holder.address, holder.seen = address, now
        holder.running += 1
        return None

    def release(self, name: str, instance: str, now: float) -> None:
        """A call ended."""
        holder = self._holders.get(name)
        if holder is not None and holder.instance == instance:
            holder.running -= 1
            holder.seen = now

    def notice(self, name: str, now: float) -> str:
        """What the holder of a name should be told; empty where nobody else claimed it lately."""
        at, _, address = self._conflicts.get(name, (float("-inf"), "", ""))
        if now - at > TOLD_S:
            return ""
        return (
            f"another agent at {address} uses the identity {name} too and is refused; enrol it under its own name; "
            f"if it is not yours, revoke this one (`fogline ca revoke {name}`)"
        )

    def _forget(self, now: float) -> None:
        self._holders = {n: h for n, h in self._holders.items() if h.running or now - h.seen < self._hold_s}
        self._conflicts = {n: c for n, c in self._conflicts.items() if now - c[0] < TOLD_S}
