"""The contract as released (proto/baseline.json) and as it is now: what either end writes, the other reads.

`buf breaking` holds the declarations against each other; this holds the bytes.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from fogline.common.rpc.gen import authority_pb2, control_pb2, images_pb2, tensors_pb2, transfer_pb2

BASELINE = Path(__file__).resolve().parents[3] / "proto" / "baseline.json"
NOW = {
    f"fogline.v1.{name}": getattr(module, name)
    for module in (authority_pb2, control_pb2, images_pb2, tensors_pb2, transfer_pb2)
    for name in module.DESCRIPTOR.message_types_by_name
}


def released() -> dict[str, type[Message]]:
    """Message classes made of the baseline alone."""
    files = json_format.Parse(BASELINE.read_text(), descriptor_pb2.FileDescriptorSet(), ignore_unknown_fields=True)
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    names = [f"{file.package}.{message.name}" for file in files.file for message in file.message_type]
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(name)) for name in names}


def fill(message: Any, kind: Descriptor, draw: random.Random, depth: int = 0) -> None:
    """Give every field a value, and of each oneof one."""
    for oneof in kind.oneofs:
        field = draw.choice(list(oneof.fields))
        _set(message, field, draw, depth)
    for field in kind.fields:
        if field.containing_oneof is None:
            _set(message, field, draw, depth)


def _set(message: Any, field: FieldDescriptor, draw: random.Random, depth: int) -> None:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        inner = field.message_type.fields_by_name["value"]
        if inner.message_type is None:
            getattr(message, field.name)[_value(field.message_type.fields_by_name["key"], draw)] = _value(inner, draw)
        return
    if field.message_type is not None:
        if depth < 4:
            target = getattr(message, field.name)
            target = target.add() if field.is_repeated else target
            target.SetInParent()
            fill(target, field.message_type, draw, depth + 1)
        return
    if field.is_repeated:
        getattr(message, field.name).extend([_value(field, draw), _value(field, draw)])
    else:
        setattr(message, field.name, _value(field, draw))


def _value(field: FieldDescriptor, draw: random.Random) -> Any:
    if field.enum_type is not None:
        return draw.choice(list(field.enum_type.values)).number
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return draw.randbytes(5) if field.type == FieldDescriptor.TYPE_BYTES else f"text {draw.randrange(1000)}"
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return True
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return float(draw.randrange(1, 1000)) / 8
    return draw.randrange(1, 1 << 30)


@pytest.mark.parametrize("name", sorted(released()))
def test_old_and_new_read_each_other(name: str) -> None:
    old, new = released()[name], NOW[name]
    draw = random.Random(name)
    for _ in range(5):
        written = old()
        fill(written, written.DESCRIPTOR, draw)
        data = written.SerializeToString(deterministic=True)
        read = new()
        read.ParseFromString(data)
        assert json_format.MessageToDict(read) == json_format.MessageToDict(written)
        # What a newer end adds is carried past an older one, and changes nothing of what that one reads.
        answer = new()
        fill(answer, answer.DESCRIPTOR, draw)
        back = old()
        back.ParseFromString(answer.SerializeToString())
        again = new()
        again.ParseFromString(back.SerializeToString())
        assert again == answer
