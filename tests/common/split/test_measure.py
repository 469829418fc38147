"""What a profile's measurement must get right: sizes, accuracy, and times that are consistent."""

from __future__ import annotations

from itertools import pairwise

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from fogline.common.errors import ConfigError, InputError  # noqa: E402
from fogline.common.split import measure as measuring  # noqa: E402
from fogline.common.split.measure import Calibration, Effort, measure, predictions  # noqa: E402
from fogline.common.split.profile import INPUT  # noqa: E402

QUICK = Effort(rounds=1, repeats=1, samples=4)


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(32, 16), torch.nn.ReLU(), torch.nn.Linear(16, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4)
    ).eval()


def test_sizes_are_those_of_the_tensors_and_lossless_codecs_lose_nothing() -> None:
    made = measure(
        network(), Calibration(torch.rand(4, 32)), name="m:f", batches=(1, 3), codecs=("raw", "fp16"), effort=QUICK
    )
    assert [cut.name for cut in made.cuts] == [INPUT, "0", "2"]
    for cut, elements in zip(made.cuts, (32, 16, 8), strict=True):
        raw, half = cut.codecs
        assert raw.coded_bytes == {1: 4.0 * elements, 3: 12.0 * elements}
        assert half.coded_bytes[1] < raw.coded_bytes[1]
        assert raw.accuracy_drop == 0.0
        assert cut.ratio == pytest.approx(elements / 32)
    assert made.input_elements == 32
    assert made.output_bytes == 16
    made.check(architecture=made.architecture, hardware=made.hardware, torch=str(torch.__version__))


def test_labels_give_accuracy_and_none_give_agreement() -> None:
    inputs = torch.rand(4, 32)
    model = network()
    right = model(inputs).argmax(-1)
    same = measure(model, Calibration(inputs, right), name="m:f", codecs=("fp16",), effort=QUICK)
    assert {one.accuracy_drop for cut in same.cuts for one in cut.codecs} == {0.0}
    wrong = measure(model, Calibration(inputs, (right + 1) % 4), name="m:f", codecs=("fp16",), effort=QUICK)
    assert {one.accuracy_drop for cut in wrong.cuts for one in cut.codecs} == {0.0}  # nothing to lose


def test_keywords_are_inputs_too() -> None:
    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Linear(8, 4), torch.nn.Linear(4, 2)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.second(self.first(x + y))
            return out

    made = measure(
        Two().eval(),
        Calibration({"x": torch.rand(2, 8), "y": torch.rand(2, 8)}),
        name="m:f",
        codecs=("raw",),
        effort=QUICK,
    )
    assert made.cuts[0].codecs[0].coded_bytes[1] == 64
    assert [cut.name for cut in made.cuts] == [INPUT, "first"]


@given(st.lists(st.floats(0, 100), min_size=1, max_size=12))
def test_rising_is_the_nearest_sequence_that_never_falls(values: list[float]) -> None:
    found = measuring._rising(values)
    assert len(found) == len(values)
    assert all(b >= a - 1e-9 for a, b in pairwise(found))
    assert sum(found) == pytest.approx(sum(values), abs=1e-6)
    if values == sorted(values):
        assert found == values


def test_a_longer_head_never_takes_less(monkeypatch: pytest.MonkeyPatch) -> None:
    made = measure(network(), Calibration(torch.rand(4, 32)), name="m:f", codecs=("raw",), effort=QUICK)
    heads = [cut.head_s[1] for cut in made.cuts]
    tails = [cut.tail_s[1] for cut in made.cuts[1:]]
    assert heads == sorted(heads)
    assert tails == sorted(tails, reverse=True)


def test_a_process_that_is_stopped_now_and_then_is_measured_over_its_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0, 0.0]  # of the wall, of the processor

    def job() -> None:
        clock[1] += 0.001
        before, clock[0] = clock[0], clock[0] + 0.001
        if int(clock[0] / 0.01) > int(before / 0.01):
            clock[0] += 0.07  # an eighth: 10 ms in each 80

    monkeypatch.setattr(measuring.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(measuring.time, "process_time", lambda: clock[1])
    alone = [measuring._timed(job, 0.0, 1) for _ in range(9)]
    assert sorted(alone)[4] == pytest.approx(0.001)
    assert measuring._timed(job, 0.8, 3) == pytest.approx(0.008, rel=0.15)
    assert measuring._limited([job] * 100)
    monkeypatch.setattr(measuring.time, "process_time", lambda: clock[0])
    assert not measuring._limited([job] * 100)


def test_what_can_not_be_measured_is_refused() -> None:
    inputs = Calibration(torch.rand(4, 32))
    with pytest.raises(ConfigError, match="no cut 'x'; there are 0, 1, 2, 3"):
        measure(network(), inputs, name="m:f", codecs=("raw",), cut_names=("x",), effort=QUICK)
    with pytest.raises(ConfigError, match="give sizes of 1 or more"):
        measure(network(), inputs, name="m:f", batches=(0,), codecs=("raw",), effort=QUICK)
    with pytest.raises(InputError, match="samples"):
        Calibration(torch.rand(0, 32))
    with pytest.raises(InputError, match="samples"):
        Calibration(torch.rand(3, 32), torch.zeros(2))
    with pytest.raises(InputError, match="no scores"):
        predictions({"boxes": torch.zeros(3, dtype=torch.int64)})
