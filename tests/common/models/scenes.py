"""Small learnable images for the tests: bright squares on dark noise."""

import torch

from fogline.common.models.compare import Annotated
from fogline.common.models.detection import Target

SIZE = (96, 64)  # w, h


def squares(count: int, seed: int, objects: int = 1) -> Annotated:
    g = torch.Generator().manual_seed(seed)
    images, targets = [], []
    for _ in range(count):
        image = torch.randint(0, 90, (3, SIZE[1], SIZE[0]), generator=g, dtype=torch.uint8)
        boxes = []
        for k in range(objects):
            side = int(torch.randint(14, 24, (), generator=g))
            slot = SIZE[0] // objects
            x = k * slot + int(torch.randint(0, slot - side + 1, (), generator=g))
            y = int(torch.randint(0, SIZE[1] - side + 1, (), generator=g))
            image[:, y : y + side, x : x + side] = torch.tensor([230, 200, 40], dtype=torch.uint8)[:, None, None]
            boxes.append([x / SIZE[0], y / SIZE[1], (x + side) / SIZE[0], (y + side) / SIZE[1]])
        images.append(image)
        targets.append(Target(torch.tensor(boxes).reshape(-1, 4), torch.zeros(len(boxes), dtype=torch.int64)))
    return Annotated(torch.stack(images), tuple(targets), tuple(f"cam{i % 2}" for i in range(count)))
