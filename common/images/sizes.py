"""In which size a frame is coded."""

from __future__ import annotations


def coded_size(width: int, height: int, target_width: int) -> tuple[int, int]:
    """Width and height in which a frame is coded: `target_width` wide, even height, never enlarged."""
    coded_width = min(width, target_width)
    coded_height = round(height * coded_width / width)
    return coded_width, max(2, coded_height - coded_height % 2)
