"""The JSON of `fogline explain`, schema 1 (docs/choosing-a-codec.md has every key). Units are in the names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fogline.common.images.communication import Communication, Place
from fogline.common.images.planning import DEFAULT_RATE_BIT_S, Decision, Weighed

SCHEMA = 1


@dataclass(frozen=True)
class Explained:
    """One camera's choice with what is told beside it; None where it is not known."""

    camera: str
    size: tuple[int, int]  # coded width and height
    decision: Decision
    traffic: Communication | None
    place: Place | None
    uploaded_bytes: float | None = None  # of what goes up for one image


def document(source: str, cameras: Sequence[Explained]) -> dict[str, Any]:
    """`source`: `folders`, measured now, or `fog`, as a fog node measured it."""
    return {"schema": SCHEMA, "source": source, "cameras": [camera_document(one) for one in cameras]}


def camera_document(one: Explained) -> dict[str, Any]:
    """One camera."""
    goal, link = one.decision.goal, one.decision.link
    return {
        "camera": one.camera,
        "coded_width_px": one.size[0],
        "coded_height_px": one.size[1],
        "goal": {
            "objective": goal.objective,
            "background_psnr_db": goal.background_db,
            "object_psnr_db": goal.object_db,
        },
        "link": {
            "receivers": link.receivers,
            "downlink_bit_s": link.downlink_bit_s or DEFAULT_RATE_BIT_S,
            "downlink_measured_or_stated": link.downlink_bit_s is not None,
            "uplink_bit_s": link.uplink_bit_s or DEFAULT_RATE_BIT_S,
            "uplink_measured_or_stated": link.uplink_bit_s is not None,
        },
        **decision_document(one.decision),
        "upload_s": None if one.uploaded_bytes is None else upload_s(one.uploaded_bytes, one.decision),
        "communication": None if one.traffic is None else _traffic(one.traffic),
        "training": None if one.place is None else _place(one.place),
    }


def decision_document(decision: Decision) -> dict[str, Any]:
    """The choice and every candidate, cheapest first; also a part of `report.json`."""
    return {
        "codec": decision.codec,
        "params": dict(decision.params),
        "reason": decision.reason,
        "candidates": [_candidate(one) for one in decision.weighed],
        "dropped": [{"codec": one.codec, "reason": one.reason} for one in decision.dropped],
    }


def upload_s(uploaded_bytes: float, decision: Decision) -> float:
    """Seconds that one image takes to the fog node: the same for all candidates."""
    return 8 * uploaded_bytes / (decision.link.uplink_bit_s or DEFAULT_RATE_BIT_S)


def _candidate(one: Weighed) -> dict[str, Any]:
    figures, cost = one.figures, one.cost
    return {
        "codec": figures.codec,
        "params": dict(figures.params),
        "chosen": one.chosen,
        "reason": one.reason,
        "frames": figures.frames,
        "record_bytes": figures.record_bytes,
        "shared_bytes": figures.shared_bytes,
        "shared_frames": figures.shared_frames,
        "delivered_bytes": figures.delivered_bytes,
        "background_psnr_db": figures.background_db,
        "object_psnr_db": figures.object_db,
        "shortfall_db": one.shortfall_db,
        "encode_s": figures.encode_s,
        "downlink_s": cost.downlink_s,
        "decode_s": figures.decode_s,
        "delivery_s": cost.delivery_s,
        "downlink_bytes": cost.downlink_bytes,
    }


def _traffic(traffic: Communication) -> dict[str, Any]:
    return {
        "receivers_n": traffic.receivers,
        "source_bytes_m": traffic.source_bytes,
        "alpha": traffic.alpha,
        "beta": traffic.beta,
        "serverless_bytes": traffic.serverless_bytes,
        "fog_bytes": traffic.fog_bytes,
        "gain": traffic.gain,
    }


def _place(place: Place) -> dict[str, Any]:
    return {
        "model_bytes_w": place.model_bytes,
        "delivered_bytes_alpha_m": place.delivered_bytes,
        "break_even_images_per_update": place.break_even_images,
        "images_per_update": place.images_per_update,
        "fewer_bytes_at": place.cheaper,
    }
