"""What the uplink benchmark concludes from a few seeds."""

from __future__ import annotations

import pytest

from fogline.benchmarks.uplink import interval, qualities_of, within
from fogline.common.images.forms import Qualities


@pytest.mark.parametrize(
    ("values", "resolved"),
    [
        ([0.001, 0.002, 0.0015], True),
        ([0.0, 0.009, -0.009], None),  # the mean alone would say yes
        ([0.05, 0.051, 0.049], None),  # better is not the same either
        ([0.001], None),
    ],
)
def test_a_difference_is_within_only_where_its_interval_is(values: list[float], resolved: bool | None) -> None:
    assert within(interval(values), 0.01) is resolved


def test_the_interval_is_student_s() -> None:
    found = interval([1.0, 2.0, 3.0])
    assert found["low"] == pytest.approx(2 - 4.303 / 3**0.5)
    assert found["high"] == pytest.approx(2 + 4.303 / 3**0.5)


def test_forms_are_measured_at_the_qualities_that_edges_are_told() -> None:
    assert qualities_of("jpeg2", []) == Qualities()
    assert qualities_of("avif2", ["object_quality=71"]) == Qualities(roi_object=71, roi_background=20)
