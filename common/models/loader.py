"""A user's own model by name: `package.module:function`, called with JSON arguments.

Names come from peers and so does what goes into them: only a name that the operator listed is ever imported, and it is
compared as a whole string, before anything else is looked at.
"""

from __future__ import annotations

import json
from collections.abc import Collection

from torch import nn

from fogline.common.errors import ConfigError, FormatError, IdentityError, InputError
from fogline.common.functions import MAX_NAME, import_function, told

MAX_ARGUMENTS = 64 << 10  # bytes of JSON
_MAX_DEPTH = 16


def load_model(name: str, arguments: str, allowed: Collection[str]) -> nn.Module:
    """Build the model that `name` names with the keyword arguments in `arguments`, a JSON object ("" for none).

    Raises IdentityError when `name` is not in `allowed`, FormatError when the arguments are no JSON object, ConfigError
    when the package or function isn't there or returns no nn.Module, and InputError when it refuses the arguments
    or raises.
    """
    if name not in allowed:
        raise IdentityError(
            f"model {name[:MAX_NAME]!r} is not allowed on this host; its operator can add it to the list of models",
            number=708,
        )
    given = parse_arguments(arguments)
    build = import_function(name, f"model {name!r}")
    try:
        model = build(**given)
    except Exception as error:  # the function's own code, which may raise anything
        raise InputError(f"model {name!r} with arguments {arguments[:200] or '{}'}: {told(error)}") from error
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"model {name!r}: returned a {type(model).__name__}, not a torch.nn.Module; name a function that builds one"
        )
    return model


def parse_arguments(arguments: str) -> dict[str, object]:
    """A JSON object as keyword arguments. Raises FormatError for anything else, too long or too deep."""
    if len(arguments) > MAX_ARGUMENTS:
        raise FormatError(f"model arguments: {len(arguments)} characters, {MAX_ARGUMENTS} at most; shorten them")
    try:
        given = json.loads(arguments or "{}")
    except (ValueError, RecursionError) as error:
        raise FormatError(f"model arguments {arguments[:200]!r}: not JSON ({error}); send a JSON object") from error
    if not isinstance(given, dict):
        raise FormatError(f"model arguments {arguments[:200]!r}: not a JSON object; send names with values")
    if _depth(given) > _MAX_DEPTH:
        raise FormatError(f"model arguments: nested deeper than {_MAX_DEPTH}; flatten them")
    return given


def _depth(value: object) -> int:
    level, depth = [value], 0
    while level := [item for item in level if isinstance(item, (dict, list))]:
        depth += 1
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return depth
