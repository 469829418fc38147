"""The fleet as a table."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fogline.fleet.sample import LINKS, Device, Rate, Rates, Sample

# What a role's gauges mean to a person: (gauge, words), shown where the device reports it.
_WORK = {
    "edge": (
        ("outbox_images", "{:,.0f} to upload"),
        ("library_records", "{:,.0f} received"),
        ("train_step", "step {:,.0f}"),
        ("train_loss", "loss {:.3f}"),
        ("train_score", "score {:.3f}"),
    ),
    "fog": (
        ("encode_queue_images", "{:,.0f} to encode"),
        ("published_head", "{:,.0f} published"),
        ("subscribers", "{:,.0f} subscribers"),
    ),
}


def render(server: str, sample: Sample, rates: Rates) -> RenderableType:
    """Totals, then a row for each device: the silent ones first, they need a person."""
    alive = [device for device in sample.devices if device.alive]
    head = Text(f"{server}: {len(alive)} of {len(sample.devices)} devices alive", style="bold")
    lines = [Text(f"{link}: up {_bits(total.up)}, down {_bits(total.down)}") for link, total in _totals(alive, rates)]
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title, right in (
        ("device", False),
        ("role", False),
        ("state", False),
        ("up", True),
        ("down", True),
        ("at work", False),
        ("version", False),
    ):
        table.add_column(title, justify="right" if right else "left", no_wrap=title != "at work")
    for device in sorted(sample.devices, key=lambda device: (device.alive, device.role != "fog", device.name)):
        total = _sum(rates.of(device).values())
        seen = max(0.0, (sample.taken_us - device.last_seen_us) / 1e6)
        state = Text("alive", style="green") if device.alive else Text(f"silent for {_span(seen)}", style="red")
        rate = (_bits(total.up), _bits(total.down)) if device.alive else ("", "")
        table.add_row(Text(device.name), device.role, state, *rate, _work(device), Text(device.version))
    if not sample.devices:
        table.add_row(Text("none joined yet"), "", "", "", "", "start an agent whose `cloud` is this server", "")
    return Group(head, *lines, Text(), table)


def _totals(alive: list[Device], rates: Rates) -> list[tuple[str, Rate]]:
    found = []
    for link in LINKS:
        of_link = [rates.of(device)[link] for device in alive if link in rates.of(device)]
        if of_link:
            found.append((link, _sum(of_link)))
    return found


def _sum(rates: Iterable[Rate]) -> Rate:
    """Of what is known; None where nothing is."""
    known = list(rates)
    ups, downs = [r.up for r in known if r.up is not None], [r.down for r in known if r.down is not None]
    return Rate(sum(ups) if ups else None, sum(downs) if downs else None)


def _work(device: Device) -> str:
    gauges = device.gauges
    return ", ".join(words.format(gauges[key]) for key, words in _WORK.get(device.role, ()) if key in gauges)


def _bits(rate: float | None) -> str:
    if rate is None:
        return "…"
    for unit in ("bit/s", "kbit/s", "Mbit/s"):
        if rate < 999.5:
            return f"{rate:.0f} {unit}" if unit == "bit/s" else f"{rate:.3g} {unit}"
        rate /= 1000
    return f"{rate:.3g} Gbit/s"


def _span(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
