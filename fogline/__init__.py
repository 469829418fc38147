"""Fogline: learning across edge, fog and cloud."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fogline.common.loader.loader import DecodedLoader as DecodedLoader
    from fogline.common.metrics import SplitMetrics as SplitMetrics
    from fogline.common.models.augment import Augment as Augment
    from fogline.common.split.cuts import cuts as cuts
    from fogline.common.split.segments import split as split
    from fogline.common.tails.adaptive import AdaptiveModel as AdaptiveModel
    from fogline.common.tails.remote import RemoteTail as RemoteTail
    from fogline.edge_agent.user_training import Training as Training

__version__ = "0.1.0"

# gRPC writes to stderr by itself, between our structured logs, what we raise and log as errors anyway. It looks at this
# when it is first imported, so nothing later than here would do; a value that the user has set stays.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

# Imported when they are asked for: they need torch, which an agent that only captures and receives does without.
_LAZY = {
    "DecodedLoader": "fogline.common.loader.loader",
    "Augment": "fogline.common.models.augment",
    "SplitMetrics": "fogline.common.metrics",
    "cuts": "fogline.common.split.cuts",
    "split": "fogline.common.split.segments",
    "AdaptiveModel": "fogline.common.tails.adaptive",
    "RemoteTail": "fogline.common.tails.remote",
    "Training": "fogline.edge_agent.user_training",
}


def __getattr__(name: str) -> object:
    """`fogline.DecodedLoader`, `split`, `RemoteTail` and the others of `_LAZY`; AttributeError for any other name."""
    if name not in _LAZY:
        raise AttributeError(f"module 'fogline' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
