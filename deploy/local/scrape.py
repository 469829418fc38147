"""Reads a process's Prometheus endpoint, and adds up counters over the incarnations of a process."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

Sample = tuple[str, tuple[tuple[str, str], ...]]  # name, sorted labels
_MAX_BYTES = 4 << 20


def scrape(port: int, timeout_s: float = 2.0) -> dict[Sample, float] | None:
    """Every sample of the endpoint on this port of loopback, or None while it doesn't answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=timeout_s) as response:
            text = response.read(_MAX_BYTES).decode()
    except (urllib.error.URLError, OSError, TimeoutError):
        return None
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


class Counters:
    """The samples of one process, with counters continued over its restarts.

    What a process counted between its last scrape and a kill is lost; scrapes are a second or so apart. A counter that
    the process itself continues, such as an edge agent's images, is read by `last`.
    """

    def __init__(self) -> None:
        self._ended: dict[Sample, float] = {}
        self._live: dict[Sample, float] = {}
        self._pid = -1

    def update(self, pid: int, samples: Mapping[Sample, float]) -> None:
        """Take the newest samples of incarnation `pid`."""
        if pid != self._pid:
            for key, value in self._live.items():
                if key[0].endswith("_total"):
                    self._ended[key] = self._ended.get(key, 0.0) + value
            self._live, self._pid = {}, pid
        self._live = dict(samples)

    def last(self, name: str, **labels: str) -> float | None:
        """The last value of one sample, or None when this incarnation has not told it."""
        return self._live.get((name, tuple(sorted(labels.items()))))

    def total(self, name: str, **labels: str) -> float:
        """The sum of a counter's samples that carry these labels, over all incarnations."""
        wanted = set(labels.items())
        return sum(
            value
            for part in (self._ended, self._live)
            for (sample, its_labels), value in part.items()
            if sample == name and wanted <= set(its_labels)
        )

    def labelled(self, name: str) -> dict[tuple[tuple[str, str], ...], float]:
        """Every label set of a counter with its sum over all incarnations."""
        sums: dict[tuple[tuple[str, str], ...], float] = {}
        for part in (self._ended, self._live):
            for (sample, labels), value in part.items():
                if sample == name:
                    sums[labels] = sums.get(labels, 0.0) + value
        return sums
