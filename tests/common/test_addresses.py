"""`host:port` texts."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fogline.common.addresses import Address, parse
from fogline.common.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("gate.local:7400", Address("gate.local", 7400)),
        ("10.0.0.5:1", Address("10.0.0.5", 1)),
        ("[::1]:65535", Address("::1", 65535)),
    ],
)
def test_good(text: str, address: Address) -> None:
    assert parse(text) == address
    assert str(address) == text


BAD = [
    "",
    "host",
    ":1",
    "[]:1",
    "host:",
    "host:0",
    "host:65536",
    "host:-1",
    "host:x",
    "::1:7400",
    "a b:1",
    "http://h:1",
]


@pytest.mark.parametrize("text", [*BAD, "host:\N{FULLWIDTH DIGIT ONE}"])
def test_bad(text: str) -> None:
    with pytest.raises(ConfigError, match="address"):
        parse(text)


def test_any_port_only_where_allowed() -> None:
    assert parse("127.0.0.1:0", allow_any_port=True).port == 0


def test_loopback() -> None:
    assert all(Address(host, 1).is_loopback for host in ("localhost", "127.0.0.9", "::1"))
    assert not any(Address(host, 1).is_loopback for host in ("10.0.0.1", "localhost.evil.example", "0.0.0.0"))


@given(st.text(max_size=30))
def test_any_text_is_an_address_or_one_error(text: str) -> None:
    with suppress(ConfigError):
        assert parse(str(parse(text))) == parse(text)
