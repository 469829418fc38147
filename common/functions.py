"""A user's own function by name, `package.module:function`, as an operator writes it into a configuration."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from typing import Any

from fogline.common.errors import ConfigError

NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
MAX_NAME = 200


def import_function(name: str, what: str) -> Callable[..., Any]:
    """Import it; `what` names in errors where the name stands, such as "train.trainer 'a:b'".

    Never for a name from a peer that the operator did not list. Raises ConfigError that says what is missing.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(f"{what}: not of the form package.module:function; correct it")
    module_name, _, function_name = name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{what}: no module {error.name!r} here; install its package on this host, or put its folder into "
            "PYTHONPATH",
            number=212,
        ) from error
    except AttributeError as error:
        raise ConfigError(
            f"{what}: {module_name} has no {function_name!r}; install the version of the package that has it",
            number=212,
        ) from error
    except Exception as error:  # the package's own code, which may raise anything
        raise ConfigError(f"{what}: importing {module_name} fails ({told(error)}); fix the package") from error
    if not callable(function):
        raise ConfigError(f"{what}: is a {type(function).__name__}, not a function; correct the name")
    found: Callable[..., Any] = function
    return found


def told(error: Exception) -> str:
    """An error of somebody else's code in a line."""
    return f"{type(error).__name__}: {str(error)[:300]}"
