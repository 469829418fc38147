"""What a model returns, described so that the other host can build it again around the same tensors.

Lists, tuples, mappings and dataclasses are rebuilt as their own classes where the receiving host's own copy of the
model is known to return these; nothing is looked up by a name from the wire. Others become plain dicts and tuples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import msgspec
from torch import Tensor

from fogline.common.errors import InputError, ProtocolError
from fogline.common.split.structure import Slot

MAX_DEPTH = 16
MAX_BYTES = 256 * 1024
Classes = Mapping[str, type]


def describe(value: Any) -> tuple[bytes, list[Any]]:
    """JSON of the structure ("" for a tensor alone) and the tensors (or Slots), in order.

    Raises InputError for other objects.
    """
    found: list[Any] = []
    made = _describe(value, "output", found, 0)
    return (b"" if made == 0 else msgspec.json.encode(made)), found


def _describe(value: Any, path: str, found: list[Any], depth: int) -> Any:
    if isinstance(value, (Tensor, Slot)):
        found.append(value)
        return len(found) - 1
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    if depth >= MAX_DEPTH:
        raise InputError(f"the model's {path} is nested more than {MAX_DEPTH} deep; return less")
    if isinstance(value, (list, tuple)):
        items = [_describe(item, f"{path}[{i}]", found, depth + 1) for i, item in enumerate(value)]
        return {
            "class": class_name(type(value)),
            "kind": "list" if isinstance(value, list) else "tuple",
            "items": items,
        }
    if isinstance(value, MutableMapping):
        pairs: Iterator[tuple[Any, Any]] = iter(list(value.items()))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
    else:
        raise InputError(
            f"the model's {path} is a {type(value).__name__}, which can't travel; let it return tensors in tuples, "
            "dicts or dataclasses (transformers: pass use_cache=False with the example)"
        )
    fields = {str(key): _describe(item, f"{path}.{key}", found, depth + 1) for key, item in pairs}
    return {"class": class_name(type(value)), "kind": "dict", "fields": fields}


def rebuild(data: bytes, count: int, tensor: Callable[[int], Tensor], classes: Classes) -> Any:
    """The structure with `tensor(i)` in its places, each of `count` used once. Raises ProtocolError."""
    if not data:
        if count != 1:
            raise ProtocolError(f"an answer with {count} outputs that doesn't say how they are nested")
        return tensor(0)
    if len(data) > MAX_BYTES:
        raise ProtocolError(f"the structure of an answer has {len(data)} bytes; at most {MAX_BYTES}")
    try:
        made = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ProtocolError(f"the structure of an answer is malformed: {error}") from error
    used: list[int] = []
    value = _rebuild(made, count, tensor, classes, used, 0)
    if used != list(range(count)):
        raise ProtocolError(f"the structure of an answer places outputs {used[:8]} of {count}")
    return value


def _rebuild(
    made: Any, count: int, tensor: Callable[[int], Tensor], classes: Classes, used: list[int], depth: int
) -> Any:
    if isinstance(made, int) and not isinstance(made, bool) and 0 <= made < count:
        used.append(made)
        return tensor(made)
    if not isinstance(made, dict) or depth > MAX_DEPTH:
        raise ProtocolError("the structure of an answer is malformed")
    if made.keys() == {"value"} and (made["value"] is None or isinstance(made["value"], (bool, int, float, str))):
        return made["value"]
    cls = classes.get(str(made.get("class")))
    match made:
        case {"kind": "list" | "tuple" as kind, "items": list(items)}:
            values = [_rebuild(item, count, tensor, classes, used, depth + 1) for item in items]
            if cls is not None and issubclass(cls, tuple) and hasattr(cls, "_fields"):
                return cls(*values)
            return values if kind == "list" else tuple(values)
        case {"kind": "dict", "fields": dict(fields)}:
            named = {key: _rebuild(item, count, tensor, classes, used, depth + 1) for key, item in fields.items()}
            try:
                return named if cls is None else _instance(cls, named)
            except TypeError as error:
                raise ProtocolError(f"an answer's {cls.__name__ if cls else ''} can't be made: {error}") from error
    raise ProtocolError("the structure of an answer is malformed")


def _instance(cls: type, named: dict[str, Any]) -> Any:
    if dataclasses.is_dataclass(cls):
        return cls(**named)
    made = cls()
    made.update(named)
    return made


def class_name(cls: type) -> str:
    """How a class is called in a structure."""
    return f"{cls.__module__}:{cls.__qualname__}"


def classes_of(template: Any, depth: int = 0) -> dict[str, type]:
    """The classes in what this host's own model returned, by the names that a structure has for them."""
    if depth > MAX_DEPTH or isinstance(template, (Tensor, Slot)):
        return {}
    found: dict[str, type] = {}
    items: list[Any] = []
    if isinstance(template, (list, tuple)):
        items = list(template)
    elif isinstance(template, MutableMapping):
        items = list(template.values())
    elif dataclasses.is_dataclass(template) and not isinstance(template, type):
        items = [getattr(template, f.name) for f in dataclasses.fields(template)]
    else:
        return {}
    if type(template) not in (list, tuple, dict):
        found[class_name(type(template))] = type(template)
    for item in items:
        found |= classes_of(item, depth + 1)
    return found
