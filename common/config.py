"""One frozen, validated configuration object per process: YAML, then environment, then flags.

    class EdgeConfig(Config, frozen=True):
        name: Annotated[str, Meta(description="Name of this device")]
        tls: TlsConfig = TlsConfig()

    config = load(EdgeConfig, Path("edge.yaml"), os.environ, {"tls.insecure": "true"})

Environment: `FOGLINE_SECTION__KEY=value` (two underscores between levels); a variable of one level counts only when
it names a field, so that unrelated `FOGLINE_…` variables do no harm. A relative path in a file is relative to that
file; in the environment or a flag, to the working directory.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import yaml
from msgspec import Meta as Meta
from msgspec import inspect

from fogline.common.errors import ConfigError

ENV_PREFIX = "FOGLINE_"


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every configuration section. Fields marked `Meta(extra={"secret": True})` are masked in `repr`."""

    def __repr__(self) -> str:
        """Show the fields, secrets masked."""
        shown = (f"{f.name}={'***' if _secret(f) else repr(getattr(self, f.name))}" for f in _fields(type(self)))
        return f"{type(self).__name__}({', '.join(shown)})"


class TlsConfig(Config, frozen=True):
    """Certificates of this process, or the explicit choice to have none."""

    ca: Annotated[Path | None, Meta(description="Certificate of the authority (`fogline ca init`)")] = None
    cert: Annotated[Path | None, Meta(description="Certificate of this process (`fogline ca enrol`)")] = None
    key: Annotated[Path | None, Meta(description="Private key of this process, mode 0600")] = None
    authority: Annotated[
        str, Meta(description="host:port of the certificate service; empty: no renewal, no revocation list")
    ] = ""
    refresh_s: Annotated[float, Meta(ge=0.1, le=20, description="How often a server asks what was revoked")] = 15.0
    insecure: Annotated[bool, Meta(description="No TLS and no identity; refused except on loopback")] = False

    def __post_init__(self) -> None:
        """Either all three files or `insecure`, never both."""
        given = [name for name in ("ca", "cert", "key") if getattr(self, name) is not None]
        if self.insecure and given:
            raise ValueError(f"`insecure` and `{given[0]}` exclude each other; leave one out")
        if not self.insecure and 0 < len(given) < 3:
            missing = ", ".join(n for n in ("ca", "cert", "key") if n not in given)
            raise ValueError(f"`{missing}` missing; give ca, cert and key together")

    def files(self) -> tuple[Path, Path, Path]:
        """Return (ca, cert, key). Raises ConfigError where they are not set."""
        if self.ca is None or self.cert is None or self.key is None:
            raise ConfigError(
                "tls: no certificates given; set tls.ca, tls.cert and tls.key (make them with `fogline ca init` and "
                "`fogline ca enrol`), or tls.insecure=true for a trial on loopback",
                number=205,
            )
        return self.ca, self.cert, self.key


class MetricsConfig(Config, frozen=True):
    """Where `/metrics` and `/healthz` are served."""

    host: Annotated[str, Meta(description="Address to serve metrics on")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=-1, le=65535, description="Port for metrics; 0: any free one, -1: none")] = 0


class LogConfig(Config, frozen=True):
    """What is logged, and how."""

    level: Annotated[Literal["debug", "info", "warning", "error"], Meta(description="Least severe level logged")] = (
        "info"
    )
    format: Annotated[Literal["json", "text"], Meta(description="json: one object a line; text: for eyes")] = "json"
    file: Annotated[
        Path | None, Meta(description="Appended to, and made anew when logrotate moves it; null: standard error")
    ] = None


C = TypeVar("C", bound=Config)


def load(cls: type[C], path: Path | None, env: Mapping[str, str], overrides: Mapping[str, str]) -> C:
    """Read one configuration. Raises ConfigError that names the source, the key path, the value and the way out."""
    values: dict[str, Any] = _read_yaml(path) if path is not None else {}
    source = str(path) if path is not None else "configuration"
    _check_keys(cls, values, (), source)
    origins: dict[tuple[str, ...], str] = {}
    for name, text in sorted(env.items()):
        keys = tuple(name[len(ENV_PREFIX) :].lower().split("__"))
        if name.startswith(ENV_PREFIX) and (len(keys) > 1 or keys[0] in cls.__struct_fields__):
            _override(cls, values, keys, text, name)
            origins[keys] = name
    for dotted, text in overrides.items():
        keys = tuple(dotted.split("."))
        _override(cls, values, keys, text, f"--set {dotted}")
        origins[keys] = f"--set {dotted}"
    base = path.parent if path is not None else Path()

    def from_text(kind: type, value: object) -> object:
        if kind is Path and isinstance(value, str) and value:
            return base.absolute() / Path(value).expanduser()
        raise ValueError(f"expected a path, got {value!r}")

    try:
        return msgspec.convert(values, cls, strict=False, dec_hook=from_text)
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(cls, str(error), values, source, origins), number=204) from error


def from_command_line(cls: type[C], prog: str, argv: Sequence[str] | None = None) -> C:
    """Read the configuration of the process `prog`: `--config FILE`, `--set section.key=value`, `--print-config`.

    Ends the process for `--help` and `--print-config`, like argparse. Raises ConfigError.
    """
    parser = argparse.ArgumentParser(prog=prog, description=(cls.__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration in YAML")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one key: section.key")
    parser.add_argument("--print-config", action="store_true", help="print every key with its default and end")
    arguments = parser.parse_args(argv)
    if arguments.print_config:
        sys.stdout.write(describe(cls))
        parser.exit(0)
    overrides: dict[str, str] = {}
    for item in arguments.set:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {item!r} is not KEY=VALUE; write it as --set metrics.port=9100")
        overrides[key] = value
    return load(cls, arguments.config, os.environ, overrides)


def describe(cls: type[Config]) -> str:
    """Return example YAML with every key, its meaning and its default; keys that have none are marked REQUIRED."""
    return "\n".join(_describe(cls, "")) + "\n"


def _describe(cls: type[Config], indent: str) -> list[str]:
    lines: list[str] = []
    for field in _fields(cls):
        section = _section(field.type)
        if section is not None and not _is_optional(field.type):
            lines.append(f"{indent}{field.name}: # {(section.__doc__ or '').partition('.')[0]}")
            lines += _describe(section, indent + "  ")
            continue
        text, bounds = _documentation(field.type)
        comment = "; ".join(part for part in (text, bounds) if part)
        if field.required:
            value, comment = "", "; ".join(part for part in ("REQUIRED", comment) if part)
        else:
            value = " " + _yaml_scalar(field.default if field.default is not msgspec.NODEFAULT else None, field)
        lines.append(f"{indent}{field.name}:{value}" + (f" # {comment}" if comment else ""))
        if (item := _item_section(field.type)) is not None:
            # One entry, commented out: the list's default stays in force.
            entry = _describe(item, "  ")
            lines += [f"{indent}#   {'- ' if i == 0 else '  '}{line.strip()}" for i, line in enumerate(entry)]
    return lines


def _yaml_scalar(default: object, field: inspect.Field) -> str:
    if field.default_factory is not msgspec.NODEFAULT:
        default = field.default_factory()
    plain = msgspec.to_builtins(default, enc_hook=str)
    return yaml.safe_dump(plain, default_flow_style=True, width=10_000).removesuffix("\n").removesuffix("\n...")


def _documentation(kind: inspect.Type) -> tuple[str, str]:
    """Return the description of a field and its bounds in words."""
    bounds = []
    for member in _members(kind):
        for name, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")):
            if (value := getattr(member, name, None)) is not None:
                bounds.append(f"{sign} {value}")
        if isinstance(member, inspect.LiteralType):
            also = ["false", "true"] if any(isinstance(m, inspect.BoolType) for m in _members(kind)) else []
            bounds.append(" | ".join([*map(str, member.values), *also]))
    return _text(kind), ", ".join(bounds)


def _text(kind: inspect.Type) -> str:
    if isinstance(kind, inspect.Metadata):
        return str((kind.extra_json_schema or {}).get("description", "")) or _text(kind.type)
    return next(filter(None, map(_text, kind.types)), "") if isinstance(kind, inspect.UnionType) else ""


def _fields(cls: type[msgspec.Struct]) -> tuple[inspect.Field, ...]:
    info = inspect.type_info(cls)
    assert isinstance(info, inspect.StructType)
    return info.fields


def _secret(field: inspect.Field) -> bool:
    return isinstance(field.type, inspect.Metadata) and bool((field.type.extra or {}).get("secret"))


def _members(kind: inspect.Type) -> tuple[inspect.Type, ...]:
    if isinstance(kind, inspect.Metadata):
        return _members(kind.type)
    if isinstance(kind, inspect.UnionType):
        return tuple(member for inner in kind.types for member in _members(inner))
    return (kind,)


def _item_section(kind: inspect.Type) -> type[Config] | None:
    for member in _members(kind):
        if isinstance(member, inspect.ListType | inspect.VarTupleType):
            return _section(member.item_type)
    return None


def _is_optional(kind: inspect.Type) -> bool:
    return any(isinstance(member, inspect.NoneType) for member in _members(kind))


def _section(kind: inspect.Type) -> type[Config] | None:
    for member in _members(kind):
        if isinstance(member, inspect.StructType):
            return typing.cast("type[Config]", member.cls)
    return None


class _StrictLoader(yaml.SafeLoader):
    """A key given twice is an error, where plain YAML silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            if isinstance(key, str):
                seen.add(key)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_bytes(), Loader=_StrictLoader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise ConfigError(
            f"configuration {path} can't be read: {error.strerror}; check --config", number=201
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration {path} is not valid YAML: {error}", number=202) from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"configuration {path} is a {type(values).__name__}; it must be `key: value` lines", number=202
        )
    return values


def _check_keys(cls: type[Config], values: Mapping[Any, Any], at: tuple[str, ...], source: str) -> None:
    fields = {field.name: field for field in _fields(cls)}
    for key, value in values.items():
        if key not in fields:
            raise ConfigError(
                f"{source}: unknown key `{'.'.join((*at, str(key)))}`; {_nearest(str(key), fields, at)}", number=203
            )
        section = _section(fields[key].type)
        if section is not None and isinstance(value, dict):
            _check_keys(section, value, (*at, key), source)
        item = _item_section(fields[key].type)
        if item is not None and isinstance(value, list):
            for index, entry in enumerate(value):
                if isinstance(entry, dict):
                    _check_keys(item, entry, (*at, f"{key}[{index}]"), source)


def _nearest(key: str, known: Mapping[str, object], at: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean `{'.'.join((*at, close[0]))}`?"
    return f"known here: {', '.join(known)}"


def _override(cls: type[Config], values: dict[str, Any], keys: tuple[str, ...], text: str, source: str) -> None:
    section: type[Config] | None = cls
    for depth, key in enumerate(keys):
        fields = {field.name: field for field in _fields(section)} if section is not None else {}
        if key not in fields:
            dotted = ".".join(keys[: depth + 1])
            raise ConfigError(f"{source}: unknown key `{dotted}`; {_nearest(key, fields, keys[:depth])}", number=203)
        field = fields[key]
        section = _section(field.type)
        if depth < len(keys) - 1:
            inner = values.get(key)
            values[key] = inner = dict(inner) if isinstance(inner, dict) else {}
            values = inner
            continue
        values[key] = _from_flag(field.type, text, source)


def _from_flag(kind: inspect.Type, text: str, source: str) -> object:
    """Return the value of a flag or variable: YAML for lists and mappings, else the text for msgspec to convert."""
    members = _members(kind)
    if text in ("null", "~") and _is_optional(kind):
        return None
    if any(isinstance(m, inspect.CustomType) and m.cls is Path for m in members):
        return str(Path(text).expanduser().absolute()) if text else text
    scalar = inspect.StrType | inspect.IntType | inspect.FloatType | inspect.BoolType | inspect.LiteralType
    if any(isinstance(m, scalar) for m in members):
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: {text!r} is not valid YAML: {error}") from error


def _explain(
    cls: type[Config], message: str, values: object, source: str, origins: Mapping[tuple[str, ...], str]
) -> str:
    """Turn `Expected `int`, got `str` - at `$.a.b[0]`` into source, key path, value and what was expected."""
    text, _, place = message.partition(" - at `$")
    steps = re.findall(r"\.([^.\[\]`]+)|\[(\d+|\.\.\.)\]", place)
    keys = tuple(name for name, _ in steps if name)
    section: type[Config] | None = cls
    allowed = ""
    for name, index in steps:
        if name and section is not None:
            field = next(field for field in _fields(section) if field.name == name)
            section, allowed = _section(field.type) or _item_section(field.type), _documentation(field.type)[1]
        if isinstance(values, dict):
            values = values.get(name)
        elif isinstance(values, list) and index.isdigit() and int(index) < len(values):
            values = values[int(index)]
    missing = re.match(r"Object missing required field `(\w+)`", text)
    if missing:
        return f"{source}: `{'.'.join((*keys, missing[1]))}` is missing; add it (--print-config explains every key)"
    where = origins.get(keys, source)
    subject = f"`{'.'.join(keys)}`" if keys else "the whole"
    shown = "" if isinstance(values, dict) else f" is {values!r}"
    if text.startswith("Invalid enum value"):
        text = f"must be one of {allowed}"
    return f"{where}: {subject}{shown}: {text[:1].lower()}{text[1:]}"
