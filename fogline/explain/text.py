"""What `fogline explain` prints."""

from __future__ import annotations

from collections.abc import Iterator

from fogline.common.images.communication import Communication, Place
from fogline.common.images.planning import DEFAULT_RATE_BIT_S, Weighed
from fogline.explain.document import Explained, upload_s

_HEAD = (
    "",
    "record B",
    "shared B",
    "background",
    "objects",
    "encode ms",
    "downlink ms",
    "decode ms",
    "sum ms",
    "bytes down",
)


def lines(one: Explained) -> Iterator[str]:
    """One camera: its choice, the candidates with their cost terms, the traffic, the place of training."""
    decision = one.decision
    goal, link = decision.goal, decision.link
    yield f"{one.camera}, coded at {one.size[0]}x{one.size[1]}: {decision.codec} {_params(decision.params)}"
    yield f"  {decision.reason}"
    yield (
        f"  asked: least {goal.objective}, background {goal.background_db:g} dB, objects {goal.object_db:g} dB; "
        f"{link.n} receiver{'s' if link.n > 1 else ''}, downlink {_rate(link.downlink_bit_s)}, "
        f"uplink {_rate(link.uplink_bit_s)}"
    )
    rows = [_HEAD, *(_row(weighed) for weighed in decision.weighed)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    yield ""
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        yield "  " + "  ".join(cells)
    yield ""
    for weighed in decision.weighed:
        if not weighed.chosen:
            yield f"  not {weighed.figures.codec} {_params(weighed.figures.params)}: {weighed.reason}"
    for dropped in decision.dropped:
        yield f"  not {dropped.codec}: {dropped.reason}"
    if one.uploaded_bytes is not None:
        seconds = upload_s(one.uploaded_bytes, decision)
        yield f"  upload: {one.uploaded_bytes:,.0f} bytes, {1000 * seconds:.1f} ms an image, whatever is chosen"
    if one.traffic is not None:
        yield "  " + _traffic(one.traffic)
    if one.place is not None:
        yield "  " + _place(one.place)


def _row(one: Weighed) -> tuple[str, ...]:
    figures, cost = one.figures, one.cost
    return (
        ("* " if one.chosen else "  ") + figures.codec,
        f"{figures.record_bytes:,.0f}",
        f"{figures.shared_bytes:,.0f}",
        "" if figures.background_db is None else f"{figures.background_db:.1f} dB",
        "" if figures.object_db is None else f"{figures.object_db:.1f} dB",
        f"{1000 * cost.encode_s:.1f}",
        f"{1000 * cost.downlink_s:.1f}",
        "" if figures.decode_s is None else f"{1000 * figures.decode_s:.1f}",
        f"{1000 * cost.delivery_s:.1f}",
        f"{cost.downlink_bytes:,.0f}",
    )


def _traffic(traffic: Communication) -> str:
    n = traffic.receivers
    return (
        f"traffic of an image of m = {traffic.source_bytes:,.0f} bytes: D_s = {traffic.serverless_bytes:,.0f} without, "
        f"D_f = {traffic.fog_bytes:,.0f} with a fog node; "
        f"n/(beta + alpha n) = {n}/({traffic.beta:.3f} + {traffic.alpha:.4f} x {n}) = {traffic.gain:.2f}x"
    )


def _place(place: Place) -> str:
    rule = (
        f"training: an update of W = {place.model_bytes:,.0f} bytes weighs as much as {place.break_even_images:,.0f} "
        f"images of {place.delivered_bytes:,.0f} bytes"
    )
    if place.cheaper is None:
        return f"{rule}; with fewer images per update train at the edges, with more at the fog node"
    other = "fewer" if place.cheaper == "edges" else "no fewer"
    where = "the edges (ship images)" if place.cheaper == "edges" else "the fog node (ship updates)"
    return f"{rule}; {place.images_per_update:,.0f} an update is {other}: train at {where}"


def _params(params: object) -> str:
    return " ".join(f"{key}={value}" for key, value in dict(params).items())  # type: ignore[call-overload]


def _rate(bit_s: float | None) -> str:
    return f"{DEFAULT_RATE_BIT_S / 1e6:g} Mbit/s (assumed)" if bit_s is None else f"{bit_s / 1e6:.3g} Mbit/s"
