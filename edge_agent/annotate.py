"""A user's own function that finds the objects in live frames: `module:function`, named by the board's configuration.

The function gets the frame as uint8 [height, width, 3] (RGB) and returns boxes: `(x, y, width, height, label)` in
pixels, with or without the label, or `fogline.common.boxes.Box`. It runs in the camera's process, never in the agent's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from fogline.common.boxes import Box, check_boxes
from fogline.common.errors import InputError
from fogline.common.functions import import_function, told

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_log = logging.getLogger(__name__)
Annotate = Callable[["NDArray[np.uint8]"], Iterable[Any]]


class Annotator:
    """Calls the function; a frame that it fails on goes without boxes, and each failure is told once."""

    def __init__(self, name: str, label: str) -> None:
        """`label` is of boxes without one. Raises ConfigError."""
        self._name, self._label = name, label
        self._function: Annotate = import_function(name, f"capture.annotate {name!r}")
        self._told: set[str] = set()

    def boxes(self, frame: NDArray[np.uint8]) -> tuple[Box, ...]:
        """The boxes of a frame, uint8 [height, width, 3]."""
        height, width = frame.shape[:2]
        try:
            found = [self._box(value) for value in self._function(frame)]
            return check_boxes(found, width, height, where=f"capture.annotate {self._name!r}")
        except Exception as error:  # noqa: BLE001 - the user's own code, which may raise anything
            text = str(error) if isinstance(error, InputError) else f"{self._name}: {told(error)}"
            if text not in self._told and len(self._told) < 100:
                self._told.add(text)
                _log.warning("frames go without boxes: %s", text)
            return ()

    def _box(self, value: Any) -> Box:
        if isinstance(value, Box):
            return value
        x, y, w, h, *label = value
        return Box(float(x), float(y), float(w), float(h), str(label[0]) if label else self._label)
