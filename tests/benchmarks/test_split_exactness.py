from __future__ import annotations

import pytest
import torch

from fogline.benchmarks.split_exactness import equal, measure
from fogline.benchmarks.split_families import FAMILIES


@pytest.mark.parametrize("name", ["vit", "gpt2-tied"])
def test_a_family_is_measured(name):
    family = {f.name: f for f in FAMILIES}[name]
    found = measure(family, False, 2, 2)
    assert found["equal"] == found["cuts"] == len(found["rows"]) > 0
    assert found["trainable"] == (0 if name == "gpt2-tied" else found["cuts"])
    assert all(row["whole_ms"] > 0 for row in found["rows"] if "overhead" in row)


def test_equal_means_bits_and_class():
    a = torch.tensor([1.0, 2.0])
    assert equal({"x": a}, {"x": a.clone()})
    assert not equal({"x": a}, {"x": torch.nextafter(a, a + 1)})
    assert not equal((a,), [a])
