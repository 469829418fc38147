"""Tiles go to the same pixels by an indexed copy, as on a GPU, and one by one, as on a CPU."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from fogline.common.images.codec import Placement  # noqa: E402
from fogline.common.images.record import LayerKind  # noqa: E402
from fogline.common.images.siren_canvas import Canvas  # noqa: E402
from fogline.common.images.siren_payload import Grid  # noqa: E402
from fogline.common.images.siren_tiles import tiles  # noqa: E402

WHOLE = (0.0, 0.0, 1.0, 1.0)


@pytest.mark.parametrize("seed", range(5))
def test_both_ways_fill_every_layer_alike(seed: int) -> None:
    random = np.random.default_rng(seed)
    kinds, places, members = [], [], []
    for i in range(6):
        w, h, columns, rows = random.integers(1, 40, 2).tolist() + random.integers(1, 5, 2).tolist()
        source = WHOLE if i % 2 else (0.1, 0.2, 0.7, 0.9)
        places.append(Placement(3, 4, w, h, source))
        kinds.append(LayerKind.OBJECT if i % 3 else LayerKind.BACKGROUND)
        members += [(i, tile) for tile in tiles(places[-1], Grid(columns, rows))]
    tall, wide = max(len(t.ys) for _, t in members), max(len(t.xs) for _, t in members)
    values = torch.rand(len(members), 3, tall, wide, generator=torch.Generator().manual_seed(seed)) * 4 - 2
    found = []
    for indexed in (False, True):
        canvas = Canvas(kinds, places, torch.device("cpu"), indexed=indexed)
        half = len(members) // 2
        canvas.fill(members[:half], values[:half])
        canvas.fill(members[half:], values[half:])
        found.append(canvas.layers())
    for i, (one, other) in enumerate(zip(*found, strict=True)):
        assert one.shape == (3, places[i].h, places[i].w)
        assert torch.equal(one, other)
        low, high = (0, 1) if kinds[i] is LayerKind.BACKGROUND else (-1, 1)
        assert low <= one.min() <= one.max() <= high
    for (i, tile), image in zip(members, values, strict=True):
        shown = found[1][i][:, tile.y : tile.y + len(tile.ys), tile.x : tile.x + len(tile.xs)]
        part = image[:, : len(tile.ys), : len(tile.xs)]
        wanted = ((part + 1) / 2).clamp(0, 1) if kinds[i] is LayerKind.BACKGROUND else part.clamp(-1, 1)
        assert torch.allclose(shown, wanted)
