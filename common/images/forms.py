"""The forms in which an edge may send a captured frame (`uplink.py` makes and reads them)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Form(Enum):
    """The numbers are the contract's UplinkForm."""

    ORIGINAL = 1
    RESIZED = 2
    AVIF = 3
    ROI = 4

    @classmethod
    def of(cls, name: str) -> Form:
        """The form that configuration and reports call `name`."""
        return cls[name.upper()]

    @property
    def text(self) -> str:
        """Its name in configuration and reports."""
        return self.name.lower()


CODED_FORMS = (Form.RESIZED, Form.AVIF, Form.ROI)  # all but the original


@dataclass(frozen=True)
class Qualities:
    """1 to 100 each; found by measurement (docs/results.md, Uplink)."""

    resized: int = 92
    avif: int = 80
    roi_object: int = 90
    roi_background: int = 40
