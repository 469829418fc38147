"""The interface of split policies, and their registry."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, TypeVar

from fogline.common.errors import ConfigError
from fogline.common.split.link import LinkEstimate
from fogline.common.split.options import Load, Option, Power, Table

P = TypeVar("P", bound="type[Policy]")


class Situation(NamedTuple):
    """All that a policy may look at. `pending` is how many samples wait to be inferred."""

    now: float
    links: tuple[LinkEstimate, ...]
    load: Load = Load()
    pending: int = 1


class Choice(NamedTuple):
    """An option, and why. `expected_s` is what the policy believes it takes; None where it has no opinion.

    Where nothing came back `deadline_s` after the bytes were handed to the link, the rest is to be computed on the
    device as well, and whichever result comes first counts; None: wait as long as it takes.
    """

    option: Option
    reason: str
    expected_s: float | None = None
    deadline_s: float | None = None


class Policy(ABC):
    """Chooses among options. Built once for a model, a set of hosts and the batch sizes that may be formed."""

    name: ClassVar[str]
    adaptive: ClassVar[bool] = True  # whether it looks at the link at all, so that probing it is of use

    def __init__(self, options: Sequence[Option]) -> None:
        """`options`: what is to choose from, of one or more batch sizes; a policy takes those of its kind."""
        if not options:
            raise ConfigError(f"policy {self.name}: nothing to choose from; see `fogline split explain`")
        self.table = Table(options)

    @abstractmethod
    def choose(self, situation: Situation) -> Choice:
        """Decide for the next batch. Takes microseconds: it is called for each."""

    def second_thought(self, situation: Situation, remaining_s: float) -> Choice | None:
        """While the device computes a whole batch and needs `remaining_s` more: what to send after all, beside that.

        The situation's `pending` is the size of that batch.
        """
        return None

    def worth_bit_s(self, load: Load, rtt_s: float) -> float | None:
        """The rate of the first hop at which the best option that uses it costs as much as the device alone.

        None where no rate makes a difference.
        """
        table = self.table
        if table.local is None or not table.hops:
            return None
        own, host, fixed = load.factors[0], load.factors[1], rtt_s + load.queues_s[1]
        local = table.device_s[table.local] * own
        best = max(
            (
                (local - device * own - fixed - seconds[0] * host) / counts[0]
                for device, counts, seconds in zip(table.device_s, table.bytes, table.host_s, strict=True)
                if counts[0] > 0
            ),
            default=0.0,
        )
        return 8.0 / best if best > 0 else None


_REGISTRY: dict[str, type[Policy]] = {}


def register(kind: P) -> P:
    """Class decorator: make a policy known under its `name`."""
    assert kind.name not in _REGISTRY, kind.name
    _REGISTRY[kind.name] = kind
    return kind


def names() -> tuple[str, ...]:
    """All policies."""
    _load()
    return tuple(sorted(_REGISTRY))


def find(name: str) -> Callable[..., Policy]:
    """A policy's class. Raises ConfigError that names the nearest."""
    _load()
    if name not in _REGISTRY:
        close = difflib.get_close_matches(name, _REGISTRY, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(names())}"
        raise ConfigError(f"no split policy {name!r}; {hint}")
    return _REGISTRY[name]


def make(name: str, options: Sequence[Option], params: Mapping[str, Any] | None = None) -> Policy:
    """Build a policy. Raises ConfigError for an unknown name or parameter."""
    kind = find(name)
    known = [key for key in inspect.signature(kind).parameters if key != "options"]
    for key in params or {}:
        if key not in known:
            raise ConfigError(f"policy {name} has no parameter {key!r}; it has {', '.join(known) or 'none'}")
    return kind(options, **(params or {}))


def _load() -> None:
    """Import every module beside this one, which registers what it defines."""
    package = __name__.rpartition(".")[0]
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")


@dataclass(frozen=True)
class Objective:
    """What is least: `latency` in seconds, or `energy` of the device in joules."""

    kind: str = "latency"
    power: Power = field(default_factory=Power)

    def __post_init__(self) -> None:
        """Raise ConfigError for any other."""
        if self.kind not in ("latency", "energy"):
            raise ConfigError(f"objective {self.kind!r}; give latency or energy")

    def cost(self, table: Table, links: Sequence[LinkEstimate], load: Load) -> list[float]:
        """One number for each option of a table; infinite where it can't be run."""
        if self.kind == "latency":
            return table.latency_s(links, load)
        return table.energy_j(links, load, self.power)


def first(options: Sequence[Option], policy: str, cut: str, codec: str | None) -> Option:
    """The option of a cut and codec; of `local`, without codec. Raises ConfigError that names the nearest cut."""
    if cut == "local":
        return next(one for one in options if not one.cuts)
    for one in options:
        if one.cuts == (cut,) and (codec is None or one.codecs == (codec,)):
            return one
    cuts = list(dict.fromkeys(one.cuts[0] for one in options if len(one.cuts) == 1))
    if cut in cuts:
        codecs = [one.codecs[0] for one in options if one.cuts == (cut,)]
        raise ConfigError(f"policy {policy}: codec {codec!r} was not measured at {cut}; there are {', '.join(codecs)}")
    close = difflib.get_close_matches(cut, [*cuts, "local"], n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(['local', *cuts])}"
    raise ConfigError(f"policy {policy}: no cut {cut!r}; {hint}")
