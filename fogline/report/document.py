"""`report.json`, schema 1. Keys outside `extra` are a contract: benchmarks and users' scripts read them.

`uplink` has the form that edges were advised to send, `images` that came in each form, `beta` and `alpha`: bytes of the
uplink, and of the downlink with shared state to one receiver, over bytes of source JPEGs, on the wire, and
`gain_n_over_beta_plus_alpha_n` for them; `extra.prediction` has the paper's n/(1 + alpha n) too.

With the codec `auto`, `codec.cameras` has for each camera what `fogline explain` has for it (docs/choosing-a-codec.md),
as last weighed, with `images` coded by each codec and how often the choice `changes`d, the first time included.

Units are in the names or are bytes. `cpu_seconds` are per tier, over all its processes and their restarts.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from fogline.explain.document import Explained, camera_document
from fogline.report.findings import SCHEMA, CodecTrial, Comparison, Findings, Score, mean


def document(found: Findings) -> dict[str, Any]:
    """The whole report as JSON-able values."""
    traffic = found.traffic
    return {
        "schema": SCHEMA,
        "devices": len(found.edges),
        "receivers_per_image": found.receivers_per_image,
        "images": found.images,
        "codec": {"name": found.codec, "params": dict(found.codec_params), **_auto(found)},
        "uplink": {
            "form": found.uplink,
            "images": dict(found.uplink_forms),
            "beta": found.model.beta,
            "alpha": found.model.alpha,
            "gain_n_over_beta_plus_alpha_n": found.model.gain,
        },
        "bytes": dataclasses.asdict(traffic),
        "gain_vs_source": traffic.gain_vs_source,
        "gain_vs_resized": traffic.gain_vs_resized,
        "quality": quality(found.scores),
        "encode": dataclasses.asdict(found.encode),
        "decode": dataclasses.asdict(found.decode),
        "delay_s": {"p50": found.delay.p50, "p95": found.delay.p95},
        "cpu_seconds": {
            tier: sum(d.cpu_s for d in found.devices if d.tier == tier) for tier in ("edge", "fog", "cloud")
        },
        "training": _training(found.comparison),
        "images_lost": found.lost,
        "images_duplicated": found.duplicated,
        "extra": _extra(found),
    }


def _auto(found: Findings) -> dict[str, Any]:
    """What `auto` chose; nothing to add for other codecs."""
    if found.codec != "auto":
        return {}
    return {
        "cameras": [
            {
                **camera_document(Explained(c.camera, (c.width, c.height), c.decision, None, None)),
                "images": dict(one.images),
                "changes": one.stats.changes,
            }
            for one in found.chosen
            for c in [one.stats.choice]
        ]
    }


def quality(scores: Sequence[Score]) -> dict[str, float | None]:
    """Means over images."""
    return {
        "full_psnr_db": mean([s.full_db for s in scores]),
        "background_psnr_db": mean([s.background_db for s in scores]),
        "object_psnr_db": mean([s.object_db for s in scores]),
    }


def by_camera(scores: Sequence[Score]) -> dict[str, list[Score]]:
    """Scores grouped by camera, in order of name."""
    groups: dict[str, list[Score]] = defaultdict(list)
    for score in sorted(scores, key=lambda s: s.camera):
        groups[score.camera].append(score)
    return groups


def summary_of(scores: Sequence[Score]) -> dict[str, Any]:
    """Quality and bytes of a group of images."""
    return {
        "images": len(scores),
        **quality(scores),
        "object_psnr_background_layer_alone_db": mean([s.object_background_db for s in scores]),
        "object_gain_over_background_db": object_gain(scores),
        "record_bytes": mean([s.record_bytes for s in scores]),
        "background_layer_bytes": mean([s.background_bytes for s in scores]),
        "object_layer_bytes": mean([s.object_bytes for s in scores]),
    }


def object_gain(scores: Sequence[Score]) -> float | None:
    """What the object layers add to the background layer's own rendering of the boxes, dB, mean over images."""
    return mean(
        [
            s.object_db - s.object_background_db
            for s in scores
            if s.object_db is not None and s.object_background_db is not None
        ]
    )


def _training(comparison: Comparison | None) -> dict[str, Any] | None:
    if comparison is None:
        return None
    return {
        "metric": comparison.metric,
        "untrained": comparison.untrained,
        "constant_box": comparison.constant_box,
        "on_source": statistics.fmean(comparison.on_source),
        "on_decoded": statistics.fmean(comparison.on_decoded),
        "epochs": comparison.epochs,
        "seconds_source": comparison.seconds_source,
        "seconds_decoded": comparison.seconds_decoded,
    }


def _extra(found: Findings) -> dict[str, Any]:
    comparison = found.comparison
    return {
        "synthetic": found.synthetic,
        "prediction": {
            "n": found.model.receivers,
            "alpha": found.model.alpha,
            "beta": found.model.beta,
            "gain_n_over_1_plus_alpha_n": found.model.gain_as_captured,
            "gain_n_over_beta_plus_alpha_n": found.model.gain,
            "measured_gain_vs_source": found.traffic.gain_vs_source,
        },
        "bytes_by_link": [dataclasses.asdict(flow) for flow in found.flows],
        "coded": {"width": found.width, "size": found.size},
        "quality_by_camera": {camera: summary_of(group) for camera, group in by_camera(found.scores).items()},
        "quality_all": summary_of(found.scores),
        "codecs_on_same_frames": [_trial(trial) for trial in found.trials],
        "decode_prepare_images_per_s": found.prepare_per_s,
        "training_seeds": None
        if comparison is None
        else {
            "seeds": comparison.seeds,
            "steps": comparison.steps,
            "images": comparison.images,
            "detector_parameters": comparison.parameters,
            "constant_box_per_camera": comparison.constant_box_per_camera,
            "on_source": comparison.on_source,
            "on_decoded": comparison.on_decoded,
            "difference_decoded_minus_source": [
                decoded - source for source, decoded in zip(comparison.on_source, comparison.on_decoded, strict=True)
            ],
        },
        "edges_while_images_arrived": {
            name: {"steps": curve.steps, "metric": curve.runs[0]} for name, curve in found.fleet.items()
        },
        "devices": [
            {
                "name": d.name,
                "tier": d.tier,
                "cpu_s": d.cpu_s,
                "restarts": d.restarts,
                "captured": d.captured,
                "uploaded": d.uploaded,
                "completeness": None if d.completeness is None else dataclasses.asdict(d.completeness),
            }
            for d in found.devices
        ],
        "published_twice": found.published_twice,
        "refused_frames": list(found.refused),
        "seconds": dict(found.seconds),
        "environment": dict(found.environment),
        "command": found.command,
        "config": dict(found.config),
    }


def _trial(trial: CodecTrial) -> dict[str, Any]:
    return {**dataclasses.asdict(trial), "params": dict(trial.params)}
