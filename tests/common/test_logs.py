"""Log lines are JSON objects with their trace."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from fogline.common import logs
from fogline.common.config import LogConfig
from fogline.common.trace import trace_id


@pytest.fixture(autouse=True)
def _root_logger_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    logging.captureWarnings(False)


def test_one_json_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.setup(LogConfig(), "edge-1")
    token = trace_id.set("0123456789abcdef")
    log = logging.getLogger("fogline.test")
    log.info("stored %d\nimages", 3, extra={"digest": b"\xab", "msg_count": 1.5, "ts": "mine"})
    trace_id.reset(token)
    log.debug("not shown")
    try:
        raise ValueError("boom")
    except ValueError:
        log.exception("failed")
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert first.pop("ts").endswith("Z")
    assert first == {
        "level": "info",
        "logger": "fogline.test",
        "process": "edge-1",
        "msg": "stored 3\nimages",
        "trace": "0123456789abcdef",
        "digest": "ab",
        "msg_count": 1.5,
    }
    assert "trace" not in second
    assert second["error"].endswith("ValueError: boom")


def test_text_for_eyes(capsys: pytest.CaptureFixture[str]) -> None:
    logs.setup(LogConfig(level="warning", format="text"), "edge-1")
    logging.getLogger("fogline.test").info("not shown")
    logging.getLogger("fogline.test").warning("full", extra={"bytes": 7})
    assert capsys.readouterr().err.rstrip().endswith("WARNING  edge-1 fogline.test: full bytes=7")
