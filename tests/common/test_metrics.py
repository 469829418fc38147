"""The metrics endpoint: names, label sets, health, ports."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fogline.common.config import MetricsConfig
from fogline.common.errors import ConfigError
from fogline.common.metrics import DIRECTIONS, KINDS, LINKS, CloudMetrics, EdgeMetrics, FogMetrics, Metrics


def fetch(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_metrics_and_health_over_http() -> None:
    metrics = EdgeMetrics()
    state: dict[str, object] = {"ok": True, "fog": "connected"}
    server, port = metrics.serve(MetricsConfig(), lambda: state)
    try:
        metrics.captured_images.inc(3)
        metrics.link_bytes.labels(link="edge-fog", direction="sent", kind="image").inc(1000)
        status, text = fetch(port, "/metrics")
        assert status == 200
        samples = {
            (s.name, tuple(s.labels.items())): s.value
            for family in text_string_to_metric_families(text)
            for s in family.samples
        }
        assert samples["fogline_captured_images_total", ()] == 3
        labels = (("direction", "sent"), ("kind", "image"), ("link", "edge-fog"))
        assert samples["fogline_link_bytes_total", labels] == 1000
        assert samples["fogline_cpu_seconds_total", ()] > 0
        assert samples["fogline_uploaded_images_total", (("outcome", "stored"),)] == 0
        assert not any(name.endswith("_created") for name, _ in samples)
        assert fetch(port, "/healthz") == (200, json.dumps(state))
        state["ok"] = False
        assert fetch(port, "/healthz")[0] == 503
        assert fetch(port, "/other")[0] == 404
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port} can't be used.*metrics.port"):
            Metrics().serve(MetricsConfig(port=port), dict)
    finally:
        server.close()
        server.close()


def test_switched_off() -> None:
    server, port = Metrics().serve(MetricsConfig(port=-1), dict)
    assert port == -1
    server.close()


@pytest.mark.parametrize("kind", [EdgeMetrics, FogMetrics, CloudMetrics])
def test_names_have_units_and_labels_are_closed_sets(kind: type[Metrics]) -> None:
    allowed = {"link": LINKS, "direction": DIRECTIONS, "kind": KINDS, "outcome": None, "form": None, "codec": None}
    for family in kind().registry.collect():
        assert family.name.startswith("fogline_")
        assert family.documentation
        for sample in family.samples:
            assert set(sample.labels) <= set(allowed)
