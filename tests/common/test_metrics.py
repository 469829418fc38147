"""The metrics endpoint: names, label sets, health, ports."""

from __future__ import annotations

import json
import logging
import time
import urllib.error
import urllib.request
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import fogline
from fogline.common.config import MetricsConfig
from fogline.common.errors import ConfigError, FormError, UnavailableError
from fogline.common.host_metrics import LEVELS
from fogline.common.metrics import (
    AREAS,
    DIRECTIONS,
    IMAGE_CODECS,
    KINDS,
    LAYERS,
    LINKS,
    CloudMetrics,
    EdgeMetrics,
    FogMetrics,
    Metrics,
    TailMetrics,
    count_record,
)
from fogline.deploy.local.scrape import scrape


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


def test_what_is_read_of_the_host(tmp_path: Path, certificates: Any) -> None:
    now = datetime.now(timezone.utc).replace(microsecond=0)
    end = now + timedelta(hours=5)
    tls = certificates.tls("cam", "edge", not_before=now, not_after=end)
    metrics, state = EdgeMetrics(), {"ok": True}
    server, port = metrics.serve(MetricsConfig(), lambda: state, data_dir=tmp_path, tls=tls)
    try:
        found = scrape(port)
        assert found is not None
        assert found["fogline_certificate_not_after_seconds", (("of", "process"),)] == end.timestamp()
        assert found["fogline_certificate_not_before_seconds", (("of", "process"),)] == now.timestamp()
        assert found["fogline_certificate_not_after_seconds", (("of", "authority"),)] > end.timestamp()
        assert 0 < found["fogline_disk_free_bytes", ()] <= found["fogline_disk_size_bytes", ()]
        assert found["fogline_resident_bytes", (("of", "process"),)] > 1e6
        assert 0 < found["fogline_uptime_seconds", ()] < 60
        assert abs(found["fogline_time_seconds", ()] - time.time()) < 60
        assert found["fogline_healthy", ()] == 1
        (version,) = (dict(labels)["version"] for name, labels in found if name == "fogline_build_info")
        assert version == fogline.__version__
        renewed = certificates.tls("cam", "edge", not_before=now, not_after=end + timedelta(hours=1))
        assert tls.cert is not None
        renewed.cert.replace(tls.cert)
        state["ok"] = False
        found = scrape(port)
        assert found is not None
        assert found["fogline_certificate_not_after_seconds", (("of", "process"),)] == end.timestamp() + 3600
        assert found["fogline_healthy", ()] == 0
        tls.cert.write_text("half a certif")
        found = scrape(port)
        assert found is not None
        assert ("fogline_certificate_not_after_seconds", (("of", "process"),)) not in found
    finally:
        server.close()


def test_metrics_are_told_where_health_is_not_known() -> None:
    def health() -> dict[str, object]:
        raise UnavailableError("the store can't be read")

    server, port = EdgeMetrics().serve(MetricsConfig(), health)
    try:
        found = scrape(port)
    finally:
        server.close()
    assert found is not None
    assert found["fogline_healthy", ()] == 0


def test_log_lines_are_counted_by_the_error_that_they_tell_of() -> None:
    metrics, log = FogMetrics(), logging.getLogger("fogline.test")
    server, port = metrics.serve(MetricsConfig(), lambda: {"ok": True})
    try:
        log.info("nothing: %s", UnavailableError("x"))
        log.warning("%s: %s; trying again", "peer", UnavailableError("down"))
        log.warning("refused: %(why)s", {"why": FormError("form")})
        log.warning("call failed", extra={"error_class": "FormError"})
        log.error("odd", exc_info=ValueError("bug"))
        log.error("plain")
        found = scrape(port)
    finally:
        server.close()
    log.error("after the end")
    assert found is not None
    counted = {labels: value for (name, labels), value in found.items() if "log_records" in name and value}
    assert counted == {
        (("error", "UnavailableError"), ("level", "warning")): 1,
        (("error", "InputError"), ("level", "warning")): 2,
        (("error", "other"), ("level", "error")): 1,
        (("error", "none"), ("level", "error")): 1,
    }


def test_image_codecs_are_those_of_the_registry() -> None:
    from fogline.common.images import builtin, codec

    assert builtin
    assert {codec.codec_of(number, 1).name for number in IMAGE_CODECS} == set(IMAGE_CODECS.values())
    assert all(codec.codec_of(number, 1).name == name for number, name in IMAGE_CODECS.items())


def test_the_bytes_of_a_record_add_up() -> None:
    metrics = FogMetrics()
    count_record(metrics.record_bytes, [(0, 5, 100), (1, 2, 30), (1, 2, 20)], 200)
    found = {(s.labels["codec"], s.labels["layer"]): s.value for f in metrics.record_bytes.collect() for s in f.samples}
    assert found == {("nerv", "background"): 100, ("avif2", "object"): 50, ("nerv", "header"): 50}


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this host has no IPv6")
def test_over_ipv6() -> None:
    server, port = EdgeMetrics().serve(MetricsConfig(host="::1"), lambda: {"ok": True})
    try:
        with urllib.request.urlopen(f"http://[::1]:{port}/healthz", timeout=5) as answer:
            assert json.loads(answer.read())["ok"] is True
    finally:
        server.close()


def test_switched_off() -> None:
    server, port = Metrics().serve(MetricsConfig(port=-1), dict)
    assert port == -1
    server.close()


@pytest.mark.parametrize("kind", [EdgeMetrics, FogMetrics, CloudMetrics, TailMetrics])
def test_names_have_units_and_labels_are_closed_sets(kind: type[Metrics]) -> None:
    allowed = {
        **{"link": LINKS, "direction": DIRECTIONS, "kind": KINDS, "level": LEVELS, "layer": LAYERS, "area": AREAS},
        **dict.fromkeys(("outcome", "form", "codec", "error", "of", "role", "le", "version", "python", "tier")),
    }
    for family in kind().registry.collect():
        assert family.name.startswith("fogline_")
        assert family.documentation
        for sample in family.samples:
            assert set(sample.labels) <= set(allowed)
            for label, value in sample.labels.items():
                assert value in (allowed[label] or (value,))
