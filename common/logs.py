"""Structured logs: one JSON object a line on stderr, each with the trace it belongs to."""

from __future__ import annotations

import json
import logging
import sys
import time
from logging.handlers import WatchedFileHandler

from fogline.common.config import LogConfig
from fogline.common.errors import ConfigError
from fogline.common.trace import trace_id

__all__ = ["JsonFormatter", "TextFormatter", "extras", "is_set_up", "set_level", "setup", "trace_id"]

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def setup(config: LogConfig, process_name: str) -> None:
    """Send every log record of this process to stderr, or a file. Call it once, first thing in a process.

    Raises ConfigError for a file that can't be written.
    """
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    if config.file is not None:
        try:
            # Of several processes, each appends whole lines; whoever moves the file has each make it anew.
            handler = WatchedFileHandler(config.file, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"log.file {config.file} can't be written: {error.strerror}; choose another") from error
    handler.setFormatter(JsonFormatter(process_name) if config.format == "json" else TextFormatter(process_name))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(config.level.upper())
    logging.captureWarnings(True)


def set_level(level: str) -> None:
    """Log what is at least this severe from now on."""
    logging.getLogger().setLevel(level.upper())


def is_set_up() -> bool:
    """Whether `setup` was called: before that, an error is worth a plain line, not a log record."""
    return any(isinstance(handler.formatter, JsonFormatter | TextFormatter) for handler in logging.getLogger().handlers)


def extras(record: logging.LogRecord) -> dict[str, object]:
    """Return what the caller passed as `extra=`."""
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


class JsonFormatter(logging.Formatter):
    """{ts, level, logger, process, msg, trace?, …extra, error?}; `ts` is UTC with microseconds."""

    def __init__(self, process_name: str) -> None:
        super().__init__()
        self._process = process_name

    def format(self, record: logging.LogRecord) -> str:
        """Return one line of JSON."""
        line: dict[str, object] = {
            "ts": _timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": self._process,
            "msg": record.getMessage(),
        }
        if trace := trace_id.get():
            line["trace"] = trace
        for key, value in extras(record).items():
            line.setdefault(key, value)
        if record.exc_info and record.exc_info[0]:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=_plain, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """For eyes: time, level, logger, message, key=value."""

    def __init__(self, process_name: str) -> None:
        super().__init__()
        self._process = process_name

    def format(self, record: logging.LogRecord) -> str:
        """Return one line, and a traceback under it where there is one."""
        fields = "".join(f" {key}={_plain(value)}" for key, value in extras(record).items())
        trace = f" trace={trace_id.get()}" if trace_id.get() else ""
        head = f"{_timestamp(record.created)} {record.levelname:<8} {self._process} {record.name}: "
        text = f"{head}{record.getMessage()}{fields}{trace}"
        if record.exc_info and record.exc_info[0]:
            text += "\n" + self.formatException(record.exc_info)
        return text


def _timestamp(seconds: float) -> str:
    whole = int(seconds)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{int((seconds - whole) * 1e6):06d}Z"


def _plain(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)
