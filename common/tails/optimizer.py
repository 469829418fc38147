"""Optimizers by name: a closed table with typed hyper-parameters, the same on both ends.

    {"name": "sgd", "lr": 0.1, "momentum": 0.9, "groups": [{"parameters": ["layer4.*"], "lr": 0.01}]}

Names and defaults are those of `torch.optim`. A parameter belongs to the first group that has a pattern (`fnmatch`)
for its name; those of no group have the values outside of the groups, and come first.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import msgspec
import torch
from msgspec import Meta
from torch import nn
from torch.optim import Optimizer

from fogline.common.errors import ConfigError, ProtocolError

NonNegative = Annotated[float, Meta(ge=0)]
Fraction = Annotated[float, Meta(ge=0, lt=1)]


class Hyper(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Base of the hyper-parameters of an optimizer."""

    optimizer: ClassVar[type[Optimizer]] = Optimizer

    lr: NonNegative = 1e-3
    weight_decay: NonNegative = 0.0
    maximize: bool = False


class Sgd(Hyper):
    """`torch.optim.SGD`."""

    optimizer = torch.optim.SGD
    lr: NonNegative = 1e-3
    momentum: NonNegative = 0.0
    dampening: float = 0.0
    nesterov: bool = False


class Adam(Hyper):
    """`torch.optim.Adam`."""

    optimizer = torch.optim.Adam
    lr: NonNegative = 1e-3
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: NonNegative = 1e-8
    amsgrad: bool = False


class AdamW(Hyper):
    """`torch.optim.AdamW`."""

    optimizer = torch.optim.AdamW
    lr: NonNegative = 1e-3
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: NonNegative = 1e-8
    amsgrad: bool = False
    weight_decay: NonNegative = 1e-2


class NAdam(Hyper):
    """`torch.optim.NAdam`."""

    optimizer = torch.optim.NAdam
    lr: NonNegative = 2e-3
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: NonNegative = 1e-8
    momentum_decay: NonNegative = 4e-3


class RAdam(Hyper):
    """`torch.optim.RAdam`."""

    optimizer = torch.optim.RAdam
    lr: NonNegative = 1e-3
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: NonNegative = 1e-8


class Adamax(Hyper):
    """`torch.optim.Adamax`."""

    optimizer = torch.optim.Adamax
    lr: NonNegative = 2e-3
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: NonNegative = 1e-8


class RmsProp(Hyper):
    """`torch.optim.RMSprop`."""

    optimizer = torch.optim.RMSprop
    lr: NonNegative = 1e-2
    alpha: NonNegative = 0.99
    eps: NonNegative = 1e-8
    momentum: NonNegative = 0.0
    centered: bool = False


class Adagrad(Hyper):
    """`torch.optim.Adagrad`."""

    optimizer = torch.optim.Adagrad
    lr: NonNegative = 1e-2
    lr_decay: NonNegative = 0.0
    initial_accumulator_value: NonNegative = 0.0
    eps: NonNegative = 1e-10


class Adadelta(Hyper):
    """`torch.optim.Adadelta`."""

    optimizer = torch.optim.Adadelta
    lr: NonNegative = 1.0
    rho: Annotated[float, Meta(ge=0, le=1)] = 0.9
    eps: NonNegative = 1e-6


OPTIMIZERS: Mapping[str, type[Hyper]] = {
    "sgd": Sgd,
    "adam": Adam,
    "adamw": AdamW,
    "nadam": NAdam,
    "radam": RAdam,
    "adamax": Adamax,
    "rmsprop": RmsProp,
    "adagrad": Adagrad,
    "adadelta": Adadelta,
}
MAX_GROUPS = 64
# May not be changed between steps: they decide which state there is.
FIXED = frozenset({"initial_accumulator_value", "centered", "amsgrad"})


def hyper(spec: Mapping[str, Any]) -> list[tuple[tuple[str, ...], Hyper]]:
    """The groups of a specification: patterns and hyper-parameters; first the group of everything else.

    Raises ConfigError that names the nearest known name.
    """
    values = dict(spec)
    name = values.pop("name", None)
    kind = OPTIMIZERS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ConfigError(f"optimizer {name!r} is unknown; {_nearest(str(name), OPTIMIZERS)}")
    groups = values.pop("groups", [])
    if not isinstance(groups, (list, tuple)) or len(groups) >= MAX_GROUPS:
        raise ConfigError(f"optimizer {name}: groups must be a list of fewer than {MAX_GROUPS}")
    found: list[tuple[tuple[str, ...], Hyper]] = [((), _convert(str(name), kind, values))]
    for group in groups:
        if not isinstance(group, Mapping):
            raise ConfigError(
                f'optimizer {name}: group {group!r} must be like {{"parameters": ["layer4.*"], "lr": 0.01}}'
            )
        own = dict(group)
        patterns = own.pop("parameters", None)
        if not isinstance(patterns, (list, tuple)) or not patterns or not all(isinstance(p, str) for p in patterns):
            raise ConfigError(f"optimizer {name}: `parameters` of a group must list patterns of names, like layer4.*")
        found.append((tuple(patterns), _convert(str(name), kind, values | own)))
    return found


def _kind(spec: Mapping[str, Any]) -> type[Hyper]:
    return type(hyper(spec)[0][1])


def _convert(name: str, kind: type[Hyper], values: Mapping[str, Any]) -> Hyper:
    known = {field: None for field in kind.__struct_fields__}
    for key in values:
        if key not in known:
            raise ConfigError(f"optimizer {name}: unknown hyper-parameter {key!r}; {_nearest(str(key), known)}")
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"optimizer {name}: {error}") from error


def _nearest(key: str, known: Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(key.lower(), names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"


def build(spec: Mapping[str, Any], parameters: Sequence[tuple[str, nn.Parameter]]) -> Optimizer:
    """The optimizer of `spec` over named parameters; every group stays, also an empty one. Raises ConfigError."""
    groups = hyper(spec)
    members: list[list[nn.Parameter]] = [[] for _ in groups]
    for name, parameter in parameters:
        matching = (i for i, (patterns, _) in enumerate(groups) if any(fnmatch.fnmatchcase(name, p) for p in patterns))
        members[next(matching, 0)].append(parameter)
    made = [
        {"params": taken, **msgspec.structs.asdict(values)} for taken, (_, values) in zip(members, groups, strict=True)
    ]
    try:
        # Some checks are of the defaults only.
        return type(groups[0][1]).optimizer(made, **msgspec.structs.asdict(groups[0][1]))
    except ValueError as error:
        raise ConfigError(f"optimizer {spec.get('name')}: {error}") from error


def flat(group: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, float]:
    """The hyper-parameters of a group that may change between steps, as numbers; a pair is `betas.0` and `betas.1`."""
    found: dict[str, float] = {}
    for key in _kind(spec).__struct_fields__:
        if key in FIXED:
            continue
        value = group[key]
        if isinstance(value, torch.Tensor) and value.numel() == 1:
            value = value.item()
        if isinstance(value, (bool, int, float)):
            found[key] = float(value)
        elif isinstance(value, (tuple, list)) and all(isinstance(v, (int, float)) for v in value):
            found |= {f"{key}.{i}": float(v) for i, v in enumerate(value)}
    return found


def change(optimizer: Optimizer, spec: Mapping[str, Any], changes: Iterable[tuple[int, Mapping[str, float]]]) -> None:
    """Set hyper-parameters of groups, as `flat` wrote them. Raises ProtocolError; nothing is changed then."""
    kind = _kind(spec)
    made: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for number, values in changes:
        if not 0 <= number < len(optimizer.param_groups):
            raise ProtocolError(f"optimizer group {number}; there are {len(optimizer.param_groups)}")
        group = optimizer.param_groups[number]
        fresh: dict[str, Any] = {key: group[key] for key in kind.__struct_fields__}
        for key, value in values.items():
            name, dot, index = key.partition(".")
            old = fresh.get(name)
            if name not in fresh or name in FIXED:
                raise ProtocolError(f"hyper-parameter {key!r} can't be changed between steps")
            if isinstance(old, bool):
                fresh[name] = bool(value)
            elif isinstance(old, tuple) and dot and index.isdigit() and int(index) < len(old):
                fresh[name] = (*old[: int(index)], value, *old[int(index) + 1 :])
            elif isinstance(old, (int, float)) and not dot:
                fresh[name] = value
            else:
                raise ProtocolError(f"hyper-parameter {key!r} is no number of this optimizer")
        try:
            msgspec.convert(fresh, kind)
        except msgspec.ValidationError as error:
            raise ProtocolError(f"optimizer group {number}: {error}") from error
        made.append((group, fresh))
    for group, fresh in made:
        group.update(fresh)
