"""A real Prometheus with the configuration and rules that are shipped."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

SHIPPED = Path(__file__).resolve().parents[2] / "deploy" / "prometheus"


class Prometheus:
    """One process on loopback."""

    def __init__(self, folder: Path, port: int) -> None:
        config = folder / "prometheus"
        shutil.copytree(SHIPPED, config)
        self._targets = config / "targets"
        main = yaml.safe_load((config / "prometheus.yml").read_text())
        main["global"] |= {"scrape_interval": "1s", "evaluation_interval": "2s"}  # a test does not wait for minutes
        (config / "prometheus.yml").write_text(yaml.safe_dump(main))
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / "prometheus.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    "prometheus", f"--config.file={config / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'tsdb'}", f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdout=log, stderr=log,
            )  # fmt: skip

    def watch(self, name: str, ports: Sequence[int]) -> None:
        """Scrape these ports of loopback, as the file `targets/NAME.yml` says from now on."""
        partial = self._targets / f"{name}.partial"
        partial.write_text(yaml.safe_dump([{"targets": [f"127.0.0.1:{port}" for port in ports]}]))
        partial.replace(self._targets / f"{name}.yml")

    def get(self, path: str, **query: str) -> Any:
        """`data` of an answer of the API. Raises OSError while it is not there."""
        address = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(address, timeout=10) as answer:
            found = json.load(answer)
        assert found["status"] == "success", found
        return found["data"]

    def ready(self) -> bool:
        """Whether it serves."""
        assert self.process.poll() is None, self.log.read_text()[-2000:]
        try:
            self.get("status/buildinfo")
        except OSError:
            return False
        return True

    def values(self, expr: str) -> list[float]:
        """What an expression gives now, without what is no number."""
        found = self.get("query", query=expr)
        assert found["resultType"] == "vector", expr
        values = [float(sample["value"][1]) for sample in found["result"]]
        return [value for value in values if not math.isnan(value)]

    def without_data(self, expressions: Mapping[str, str]) -> dict[str, str]:
        """Those of the expressions, by name, that give nothing now."""
        return {name: expr for name, expr in expressions.items() if not self.values(expr)}

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(20)


def all_at_last(
    prometheus: Prometheus, expressions: Mapping[str, str], wait: Callable[[Callable[[], object]], None]
) -> dict[str, str]:
    """Wait until each expression gave something once; those that never did where `wait` ends without."""
    left = dict(expressions)

    def look() -> bool:
        nonlocal left
        left = prometheus.without_data(left)
        return not left

    wait(look)
    return left
