"""Losses by name, for the mode in which labels go to the tail: a closed table of functions of (output, labels)."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fogline.common.errors import InputError

Loss = Callable[..., Tensor]

# name: (function, the numbers that it takes)
LOSSES: Mapping[str, tuple[Loss, frozenset[str]]] = {
    "cross_entropy": (functional.cross_entropy, frozenset({"label_smoothing", "ignore_index"})),
    "nll": (functional.nll_loss, frozenset({"ignore_index"})),
    "binary_cross_entropy": (functional.binary_cross_entropy_with_logits, frozenset()),  # of logits
    "mse": (functional.mse_loss, frozenset()),
    "l1": (functional.l1_loss, frozenset()),
    "smooth_l1": (functional.smooth_l1_loss, frozenset({"beta"})),
    "huber": (functional.huber_loss, frozenset({"delta"})),
}
_ELEMENTWISE = frozenset({"binary_cross_entropy", "mse", "l1", "smooth_l1", "huber"})
_INTEGERS = frozenset({"ignore_index"})


def check(name: str, options: Mapping[str, float]) -> None:
    """Raise InputError for an unknown loss or option, with the nearest name."""
    if name not in LOSSES:
        close = difflib.get_close_matches(name, LOSSES, n=1, cutoff=0.4)
        raise InputError(
            f"loss {name!r} is unknown; "
            + (f"did you mean {close[0]!r}?" if close else f"known: {', '.join(LOSSES)}. Others: compute it yourself")
        )
    if odd := sorted(options.keys() - LOSSES[name][1]):
        raise InputError(
            f"loss {name}: unknown option {odd[0]!r}; known: {', '.join(sorted(LOSSES[name][1])) or 'none'}"
        )


def compute(name: str, options: Mapping[str, float], output: Tensor, labels: Tensor) -> Tensor:
    """The mean loss, a scalar. Raises InputError for what does not fit together."""
    check(name, options)
    made: dict[str, Any] = {k: int(v) if k in _INTEGERS else v for k, v in options.items()}
    if name in ("cross_entropy", "nll") and not labels.is_floating_point():
        # torch answers a label beyond the classes with an error on the CPU, and with a broken device elsewhere.
        ignored = labels == made.get("ignore_index", -100)
        classes = output.shape[1] if output.ndim > 1 else output.shape[0]
        if bool(((labels < 0) | (labels >= classes)).logical_and(~ignored).any()):
            raise InputError(
                f"loss {name}: labels from {int(labels.min())} to {int(labels.max())}; the output has {classes}"
            )
    if name in _ELEMENTWISE and output.shape != labels.shape:  # torch would broadcast them
        raise InputError(
            f"loss {name}: output {tuple(output.shape)} and labels {tuple(labels.shape)} must be of one shape"
        )
    try:
        return LOSSES[name][0](output, labels, **made)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise InputError(
            f"loss {name}: output {tuple(output.shape)} and labels {tuple(labels.shape)} {labels.dtype}: "
            f"{str(error).splitlines()[0][:200]}"
        ) from error


def scalar(loss: Tensor) -> bool:
    """Whether backward can begin from it."""
    return loss.ndim == 0 and torch.is_floating_point(loss)
