"""`fogline split explain` for people and for programs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fogline.common.split.options import Terms
from fogline.common.split.planner import Explanation
from fogline.common.split.profile import Profile

SCHEMA = 1


def document(profiles: Sequence[Profile], policy: str, batch: int, explanation: Explanation) -> dict[str, Any]:
    """Schema 1: `_s` are seconds, `_j` joules of the device, `_bit_s` bit/s; null where nothing can be sent."""
    link = explanation.links[0]
    return {
        "schema": SCHEMA,
        "model": profiles[0].model,
        "architecture": profiles[0].architecture,
        "device": profiles[0].hardware,
        "host": profiles[1].hardware,
        "cloud": profiles[2].hardware if len(profiles) > 2 else None,
        "calibration": profiles[0].calibration,
        "policy": policy,
        "batch": batch,
        "link": {"state": link.state.value, "rate_bit_s": link.rate_bit_s, "rtt_s": link.rtt_s},
        "beyond": [{"rate_bit_s": hop.rate_bit_s, "rtt_s": hop.rtt_s} for hop in explanation.links[1:]],
        "choice": {
            "option": explanation.choice.option.name,
            "cuts": explanation.choice.option.cuts,
            "codecs": explanation.choice.option.codecs,
            "reason": explanation.choice.reason,
            "expected_s": explanation.choice.expected_s,
            "deadline_s": explanation.choice.deadline_s,
        },
        "options": [_row(terms) for terms in explanation.weighed],
    }


def _row(terms: Terms) -> dict[str, Any]:
    one = terms.option
    encode = sum(pair[0] for pair in one.coding_s)
    decode = sum(pair[1] for pair in one.coding_s)
    return {
        "cuts": one.cuts,
        "codecs": one.codecs,
        "bytes": sum(one.coded_bytes),
        "device_s": terms.device_s,
        "encode_s": encode,  # contained in device_s
        "transfer_s": _finite(terms.transfer_s),
        "round_trips_s": terms.round_trips_s,
        "waiting_s": _finite(terms.waiting_s),
        "host_s": terms.hosts_s,
        "decode_s": decode,  # contained in host_s
        "latency_s": _finite(terms.latency_s),
        "energy_j": _finite(terms.energy_j),
        "accuracy_drop": one.accuracy_drop,
    }


def lines(profiles: Sequence[Profile], policy: str, batch: int, explanation: Explanation) -> list[str]:
    """A table, cheapest first, and the choice."""
    link = explanation.links[0]
    rate = f"{link.rate_bit_s / 1e6:.3g} Mbit/s" if link.usable and link.rate_bit_s else f"none ({link.state.value})"
    text = [
        f"{profiles[0].model}, batch {batch}",
        f"device  {profiles[0].hardware}",
        f"host    {profiles[1].hardware}",
        f"link    {rate}, round trip {1e3 * link.rtt_s:.3g} ms",
    ]
    for profile, hop in zip(profiles[2:], explanation.links[1:], strict=True):
        text += [
            f"behind  {profile.hardware}",
            f"link    {(hop.rate_bit_s or 0) / 1e6:.3g} Mbit/s, {1e3 * hop.rtt_s:.3g} ms",
        ]
    text.append("")
    rows: list[tuple[str, ...]] = [
        ("cut", "codec", "kB", "device", "transfer", "trip", "host", "total ms", "joules", "accuracy", "")
    ]
    for terms in explanation.weighed:
        one = terms.option
        rows.append(
            (
                " | ".join(one.cuts) or "local",
                " | ".join(one.codecs) or "-",
                f"{sum(one.coded_bytes) / 1e3:.1f}",
                *(_ms(value) for value in (terms.device_s, terms.transfer_s)),
                _ms(terms.round_trips_s + terms.waiting_s),
                *(_ms(value) for value in (terms.hosts_s, terms.latency_s)),
                f"{terms.energy_j:.2f}" if math.isfinite(terms.energy_j) else "-",
                f"{-100 * one.accuracy_drop:+.1f} %" if one.accuracy_drop else "same",
                "<- chosen" if one is explanation.choice.option else "",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    text += [
        "  ".join(
            cell.ljust(w) if i < 2 or i == 10 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    choice = explanation.choice
    expected = "" if choice.expected_s is None else f", {1e3 * choice.expected_s:.1f} ms expected"
    text += ["", f"{policy}: {choice.option.name}{expected}: {choice.reason}"]
    if choice.deadline_s is not None:
        text.append(f"without an answer {1e3 * choice.deadline_s:.0f} ms after sending, the device computes the rest")
    return text


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f}" if math.isfinite(seconds) else "-"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
