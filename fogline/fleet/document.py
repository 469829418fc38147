"""The fleet as JSON."""

from __future__ import annotations

import dataclasses
from typing import Any

from fogline.fleet.sample import Rates, Sample

SCHEMA = 1


def document(server: str, sample: Sample, rates: Rates) -> dict[str, Any]:
    """`fogline status --json`: times in microseconds, rates in bit/s as the device sends and receives."""
    devices = [
        dataclasses.asdict(device)
        | {"rates_bit_s": {link: dataclasses.asdict(rate) for link, rate in rates.of(device).items()}}
        for device in sample.devices
    ]
    return {"schema": SCHEMA, "cloud": server, "taken_us": sample.taken_us, "devices": devices}
