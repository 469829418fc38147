"""Modules of a tail that stay in training or evaluation mode whatever the rest is in: frozen batch norm, MC dropout.

`remote.train()` and `eval()` tell the host of one mode. Where the user set modules of the tail to the other one before
connecting, these keep it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from fogline.common.errors import InputError, ProtocolError
from fogline.common.split.segments import Segment

MAX_FIXED = 4096


def fixed_in(segments: Iterable[Segment]) -> tuple[tuple[str, ...], bool]:
    """Names of modules whose mode is not that of their segment, and the mode that they have.

    Raises InputError where these can't be told to a host.
    """
    found = [
        (name, module.training)
        for segment in segments
        for name, module in segment.named_modules()
        if name and module.training != segment.training
    ]
    if not found:
        return (), False
    modes = {mode for _, mode in found}
    if len(modes) > 1 or len(found) > MAX_FIXED:
        raise InputError(
            f"{len(found)} modules of the parts are in other modes than these, such as {found[0][0]!r}; call train() "
            f"or eval() on all parts, then set at most {MAX_FIXED} modules to the other mode"
        )
    return tuple(dict.fromkeys(name for name, _ in found)), modes.pop()


def modules_of(segment: Segment, names: Sequence[str]) -> list[nn.Module]:
    """The modules. Raises ProtocolError for a name that the model lacks."""
    if not names:
        return []
    known = dict(segment.named_modules())
    if odd := [name for name in names if name not in known]:
        raise ProtocolError(f"module {odd[0][:200]!r} is to keep its mode, and this model has none of that name")
    return [known[name] for name in names]


def set_mode(segment: Segment, training: bool, fixed: Iterable[nn.Module], fixed_training: bool) -> None:
    """`train()` or `eval()` for all modules but the fixed ones."""
    segment.train(training)
    for module in fixed:
        module.training = fixed_training


def modes_that_draw(segment: Segment, fixed: Sequence[str], fixed_training: bool) -> frozenset[bool]:
    """In which modes (training: True) a segment may draw random numbers, some modules being fixed in one."""
    drawing = frozenset(mode for mode in (True, False) if segment.draws_in(training=mode))
    return frozenset((True, False)) if fixed and fixed_training in drawing else drawing
