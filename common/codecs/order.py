"""Which stages may follow each other: refuses orders that can't gain anything, and says what to write instead."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from fogline.common.codecs.base import Compressor, Packer, Stage
from fogline.common.errors import ConfigError

_WHY = {
    "errbound": "it bounds the error of what it is given, and what comes before has its own; use int8, or it alone",
    "jpeg-input": "it sends the image itself and takes no other stage; use it alone",
}


def check_order(chain: Sequence[type[Stage]]) -> None:
    """Raise ConfigError unless the stages make sense in this order."""
    text = "+".join(cls.name for cls in chain)
    names = [cls.name for cls in chain]
    if not chain:
        raise ConfigError("codec chain is empty; write raw to send tensors as they are")
    for first, second in itertools.pairwise(chain):
        if first.name == second.name:
            raise ConfigError(f"codec chain {text}: {first.name} twice; once is enough")
        if first.rank == second.rank:
            raise ConfigError(f"codec chain {text}: {first.name} and {second.name} do the same; choose one")
        if first.rank > second.rank:
            better = "+".join(cls.name for cls in sorted(chain, key=lambda cls: cls.rank))
            raise ConfigError(f"codec chain {text}: {first.name} can't come before {second.name}; write {better}")
    if "jpeg-input" in names and len(names) > 1:
        raise ConfigError(f"codec chain {text}: {_WHY['jpeg-input']}")
    if "errbound" in names and names[0] != "errbound":
        raise ConfigError(f"codec chain {text}: {_WHY['errbound']}")
    quantised = [cls.name for cls in chain if issubclass(cls, Packer) and cls.name != "raw"]
    cast = [name for name in names if name in ("fp16", "bf16")]
    if cast and quantised:
        raise ConfigError(
            f"codec chain {text}: {quantised[0]} takes values of any width, {cast[0]} before it only adds error; "
            f"leave {cast[0]} out"
        )
    assert all(issubclass(cls, Compressor) or cls.rank < 40 for cls in chain)
