"""What every process tells of itself and its host, read when it is scraped: an idle process spends nothing on it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from prometheus_client import Counter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fogline.common import process
from fogline.common.config import TlsConfig
from fogline.common.errors import (
    CapacityError,
    ConfigError,
    FoglineError,
    FormatError,
    IdentityError,
    InputError,
    InternalError,
    ProtocolError,
    UnavailableError,
)

LEVELS = ("warning", "error", "critical")
ERRORS = (
    ConfigError,
    InputError,
    ProtocolError,
    FormatError,
    CapacityError,
    IdentityError,
    UnavailableError,
    InternalError,
)
OTHER, NONE = "other", "none"  # an exception outside of the tree; a log line that tells of no exception


class HostCollector(Collector):
    """`data_dir` and `tls` are told once they are known; until then, what depends on them has no values."""

    def __init__(self) -> None:
        self.data_dir: Path | None = None
        self.tls: TlsConfig | None = None
        self.healthy: Callable[[], bool] | None = None
        self._began = time.monotonic()
        self._certificates: dict[Path, tuple[tuple[int, int], tuple[float, float]]] = {}

    def collect(self) -> Iterator[Metric]:
        """For prometheus_client."""
        used = process.usage()
        yield CounterMetricFamily(
            "fogline_cpu_seconds", "CPU seconds of the process and its children", value=used.cpu_seconds
        )
        resident = GaugeMetricFamily("fogline_resident_bytes", "Resident memory, by whose", labels=["of"])
        resident.add_metric(["process"], used.resident_bytes)
        resident.add_metric(["children"], used.children_resident_bytes)
        yield resident
        yield GaugeMetricFamily("fogline_open_files", "Open file descriptors of the process", value=used.open_files)
        yield GaugeMetricFamily(
            "fogline_uptime_seconds",
            "Seconds since the process began, by a clock that nobody sets; resets() of it counts restarts",
            value=time.monotonic() - self._began,
        )
        yield GaugeMetricFamily(
            "fogline_time_seconds",
            "The host's clock, Unix time; scraped, it tells how far off it is",
            value=time.time(),
        )
        healthy = GaugeMetricFamily("fogline_healthy", "1 where /healthz answers 200, else 0")
        if self.healthy is not None:
            try:
                healthy.add_metric([], self.healthy())
            except FoglineError:  # a store that can't be asked; what else is known is worth the more then
                healthy.add_metric([], 0)
        yield healthy
        yield from self._disk()
        yield from self._validity()

    def _disk(self) -> Iterable[Metric]:
        free = GaugeMetricFamily("fogline_disk_free_bytes", "Free bytes of the disk with data_dir")
        size = GaugeMetricFamily("fogline_disk_size_bytes", "Size of the disk with data_dir")
        if self.data_dir is not None:
            with suppress(OSError):
                found = os.statvfs(self.data_dir)
                free.add_metric([], found.f_bavail * found.f_frsize)
                size.add_metric([], found.f_blocks * found.f_frsize)
        return free, size

    def _validity(self) -> Iterable[Metric]:
        begins = GaugeMetricFamily(
            "fogline_certificate_not_before_seconds", "Unix time from which a certificate is valid", labels=["of"]
        )
        ends = GaugeMetricFamily(
            "fogline_certificate_not_after_seconds", "Unix time at which a certificate expires", labels=["of"]
        )
        tls = self.tls
        for of, path in () if tls is None else (("process", tls.cert), ("authority", tls.ca)):
            if path is not None and (dates := self._dates(path)) is not None:
                begins.add_metric([of], dates[0])
                ends.add_metric([of], dates[1])
        return begins, ends

    def _dates(self, path: Path) -> tuple[float, float] | None:
        """From when to when the file's certificate is valid; read again when it was replaced."""
        from fogline.common import pki  # only where there are certificates: it is a large import

        try:
            found = path.stat()
            mark = (found.st_mtime_ns, found.st_ino)
            if path not in self._certificates or self._certificates[path][0] != mark:
                info = pki.inspect(path.read_bytes(), path)
                self._certificates[path] = mark, (info.not_before.timestamp(), info.not_after.timestamp())
        except (OSError, IdentityError):  # being replaced; the process itself complains where it needs it
            return None
        return self._certificates[path][1]


class LogCounter(logging.Handler):
    """Counts log records from warnings up into a counter with the labels level and error."""

    def __init__(self, counter: Counter) -> None:
        super().__init__(logging.WARNING)
        self._counter = counter

    def emit(self, record: logging.LogRecord) -> None:
        """Count a record."""
        self._counter.labels(record.levelname.lower(), _error_of(record)).inc()


def _error_of(record: logging.LogRecord) -> str:
    """The class of the error that a record tells of: named by its `error_class`, or among its arguments."""
    named = getattr(record, "error_class", None)
    if named is not None:
        return _CLASSES.get(named, OTHER)
    arguments = record.args.values() if isinstance(record.args, Mapping) else record.args or ()
    told = [value for value in (*arguments, (record.exc_info or (None, None))[1]) if isinstance(value, BaseException)]
    for error in told:
        if isinstance(error, FoglineError):
            return next((cls.__name__ for cls in ERRORS if isinstance(error, cls)), OTHER)
    return OTHER if told else NONE


# What the tree has below these counts as them.
_CLASSES = {sub.__name__: cls.__name__ for cls in ERRORS for sub in (cls, *cls.__subclasses__())}
