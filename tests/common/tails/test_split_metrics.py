"""What a program that splits a model exports: the parts of a step, the bytes, the cut and who answered."""

from __future__ import annotations

import pytest
import torch
from prometheus_client import CollectorRegistry
from tail_parts import EXAMPLE, OPTIMIZERS, HostProcess, Split, Unsplit, batches, fresh

from fogline import SplitMetrics, split
from fogline.common.split.measure import Calibration, Effort, measure
from fogline.common.split.profile import hardware_id
from fogline.common.tails.adaptive import AdaptiveModel


@pytest.fixture
def metrics() -> SplitMetrics:
    return SplitMetrics(CollectorRegistry())


def counts(metrics: SplitMetrics) -> dict[tuple[str, str], float]:
    """How often each part of each operation was timed."""
    return {
        (s.labels["operation"], s.labels["part"]): s.value
        for s in next(iter(metrics.seconds.collect())).samples
        if s.name.endswith("_count")
    }


@pytest.mark.parametrize("labels", [False, True])
def test_the_parts_of_training_steps(host: HostProcess, metrics: SplitMetrics, labels: bool) -> None:
    spec, steps = OPTIMIZERS["sgd"], 4
    model = fresh()
    whole = Unsplit(model, spec, steps)
    head, tail = split(model, at="first", example=EXAMPLE)
    assert head is not None
    metrics.watch(head)
    with host.connect(tail, at="first", optimizer=spec, metrics=metrics) as remote:
        assert metrics.registry.get_sample_value("fogline_split_connected") == 1
        script = Split(head, remote, spec, labels)
        torch.manual_seed(5)
        script.run(enumerate(batches(steps)))
        script.agrees(whole)
    operations = ("forward_loss",) if labels else ("forward", "backward")
    expected = {(op, part): steps for op in operations for part in ("encode", "link", "queue", "tail", "decode")}
    assert counts(metrics) == expected | {("forward", "head"): steps}
    value = metrics.registry.get_sample_value
    assert value("fogline_split_calls_total", {"cut": "first", "codec": "raw", "by": "host"}) == steps
    for direction in ("sent", "received"):
        coded = value("fogline_split_tensor_bytes_total", {"direction": direction, "codec": "raw"})
        assert coded == value("fogline_split_raw_bytes_total", {"direction": direction, "codec": "raw"})
        assert coded
        on_wire = value("fogline_link_bytes_total", {"link": "edge-fog", "direction": direction, "kind": "tensor"})
        assert on_wire is not None
        assert on_wire > coded


def test_an_adaptive_model_tells_cut_codec_and_link(host: HostProcess, metrics: SplitMetrics) -> None:
    torch.set_num_threads(1)
    model = fresh().eval()
    calibration = Calibration(torch.randn(4, 3, 8, 8))
    effort = Effort(rounds=2, repeats=2, samples=2)
    profile = measure(
        calibration=calibration, model=model, name="tail_models:net", batches=(1,), codecs=("raw", "int8"),
        cut_names=("first",), effort=effort,
    )  # fmt: skip
    device, value = profile.scaled(1e5, hardware_id(1)), metrics.registry.get_sample_value
    x = torch.randn(1, 3, 8, 8)
    with AdaptiveModel(
        model, host.address, profile=device, host_profile=profile, policy="fixed", params={"cut": "first"},
        codec="int8", deadline_s=30.0, metrics=metrics,
    ) as adaptive:  # fmt: skip
        adaptive.wait_ready()
        adaptive(x)
        assert adaptive.last is not None
        assert (adaptive.last.by, adaptive.last.cut) == ("host", "first")
        assert value("fogline_split_connected") == 1
        assert value("fogline_split_link_rate_bytes_per_second") > 0  # type: ignore[operator]
        assert value("fogline_split_link_round_trip_seconds") > 0  # type: ignore[operator]
        adaptive.tell_rate(0)
        adaptive(x)
        assert value("fogline_split_link_rate_bytes_per_second") == 0
    assert value("fogline_split_connected") == 0
    assert value("fogline_split_calls_total", {"cut": "first", "codec": "int8", "by": "host"}) == 1
    assert value("fogline_split_calls_total", {"cut": "local", "codec": "int8", "by": "device"}) == 1
    parts = ("head", "encode", "link", "queue", "tail", "decode")
    assert counts(metrics) == {("forward", part): 1 for part in parts} | {("local", "head"): 1}
    sent = {"direction": "sent", "codec": "int8"}
    raw, coded = (value(f"fogline_split_{kind}_bytes_total", sent) for kind in ("raw", "tensor"))
    assert raw is not None
    assert coded is not None
    assert 2 < raw / coded < 4
