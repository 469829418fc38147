"""`report.html`: one file that a stranger can read, with everything in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fogline.deploy.local.view import human_bytes
from fogline.report import charts, prose
from fogline.report.document import by_camera, summary_of
from fogline.report.findings import CodecTrial, Comparison, Findings, Score, Speed

_KINDS = {
    "image": "images",
    "record": "records",
    "shared_state": "shared state",
    "model": "detector weights",
    "control": "control",
}


@dataclass(frozen=True)
class Card:
    """One headline figure."""

    value: str
    text: str
    tone: str = ""


def render(found: Findings) -> str:
    """The page as one self-contained HTML document."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fogline.report"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("report.html").render(page=_page(found))


def _page(found: Findings) -> dict[str, Any]:
    from markupsafe import Markup

    svg = {name: Markup(text) if text else "" for name, text in _charts(found).items()}
    return {
        "title": found.title,
        "subtitle": found.environment.get("date", ""),
        "synthetic": found.synthetic,
        "problems": prose.problems(found),
        "cards": _cards(found),
        "summary": prose.summary(found),
        "bytes_note": prose.BYTES,
        "link_rows": _link_rows(found),
        "gain_note": prose.gain(found),
        "pictures_note": prose.ADDITIVE if found.codec == "siren" else prose.REPLACING,
        "exhibits": found.exhibits,
        "quality_rows": _quality_rows(found.scores),
        "quality_note": (
            f"PSNR in dB against the captured original resized to the training resolution (width {found.width}), mean "
            "over images. Background: outside all boxes. Object: inside the boxes."
        ),
        "chosen_note": prose.chosen(found),
        "chosen_rows": chosen_rows(found),
        "codec_note": prose.CODECS,
        "codec_rows": _codec_rows(found),
        "codec_columns": 1 + len(found.trials),
        "codec_strips": found.trial_strips,
        **_training(found.comparison),
        "fleet_note": prose.fleet(found),
        "device_rows": _device_rows(found),
        "completeness_note": prose.COMPLETENESS,
        "refused": found.refused,
        "delay_note": prose.delay(found),
        "cost_rows": _cost_rows(found),
        "command": found.command,
        "environment_rows": [{"name": name, "value": value} for name, value in found.environment.items()],
        **svg,
    }


def _charts(found: Findings) -> dict[str, str]:
    made = {
        "bytes_chart": charts.bytes_chart(found.traffic, found.codec),
        "gain_chart": charts.gain_chart(found.traffic, found.model),
        "delay_chart": charts.delay_chart(found.delay.all, found.delay.p50, found.delay.p95) if found.delay.all else "",
        "metric_chart": "",
        "loss_chart": "",
        "fleet_chart": "",
    }
    compared = found.comparison
    if compared is not None:
        name = prose.metric_name(compared.metric)
        levels = {"constant answer for each camera": compared.constant_box_per_camera}
        made["metric_chart"] = charts.curves_chart(compared.metric_curves, f"{name} on held-out frames", levels)
        made["loss_chart"] = charts.curves_chart(compared.loss_curves, "training loss")
    if any(len(curve.steps) > 1 for curve in found.fleet.values()):
        made["fleet_chart"] = charts.fleet_chart(found.fleet, f"{prose.metric_name(found.metric)} on held-out frames")
    return made


def _cards(found: Findings) -> list[Card]:
    traffic = found.traffic
    complete = not found.lost and not found.duplicated
    cards = [
        _gain_card(traffic.gain_vs_source, "sending every JPEG as captured to every device"),
        _gain_card(traffic.gain_vs_resized, "the same with every JPEG resized first"),
    ]
    objects = summary_of(found.scores)["object_psnr_db"]
    full = summary_of(found.scores)["full_psnr_db"]
    if objects is not None:
        cards.append(Card(f"{objects:.1f} dB", f"PSNR of the objects; {full:.1f} dB over the whole frame"))
    elif full is not None:
        cards.append(Card(f"{full:.1f} dB", "PSNR over the whole frame"))
    cards.append(
        Card(
            f"{found.lost} / {found.duplicated}",
            "images lost / duplicated over all devices",
            "good" if complete else "bad",
        )
    )
    return cards


def _gain_card(gain: float, baseline: str) -> Card:
    if gain >= 1:
        return Card(f"{gain:.2f}x", f"fewer bytes on the wire than {baseline}")
    return Card(f"{1 / gain:.2f}x", f"MORE bytes on the wire than {baseline}", "bad")


def _link_rows(found: Findings) -> list[dict[str, str]]:
    cells: dict[tuple[str, str], dict[str, float]] = {}
    for flow in found.flows:
        if flow.bytes:
            cell = cells.setdefault((flow.link, flow.kind), {"up": 0.0, "down": 0.0})
            cell[flow.direction] += flow.bytes
    return [
        {
            "link": link.replace("-", " to "),
            "kind": _KINDS.get(kind, kind),
            "up": human_bytes(cell["up"]) if cell["up"] else "",
            "down": human_bytes(cell["down"]) if cell["down"] else "",
        }
        for (link, kind), cell in sorted(cells.items())
    ]


def decibel(value: float | None) -> str:
    """One decimal, or nothing."""
    return "" if value is None else f"{value:.1f}"


def rate(value: float | None) -> str:
    """A number a second, for people."""
    if value is None:
        return "none"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _quality_rows(scores: Sequence[Score]) -> list[dict[str, Any]]:
    groups = [(camera, group, False) for camera, group in by_camera(scores).items()]
    rows = []
    for camera, group, total in [*groups, ("all cameras", list(scores), True)] if scores else []:
        figures = summary_of(group)
        gain = figures["object_gain_over_background_db"]
        rows.append(
            {
                "camera": camera,
                "images": figures["images"],
                "full": decibel(figures["full_psnr_db"]),
                "background": decibel(figures["background_psnr_db"]),
                "object": decibel(figures["object_psnr_db"]),
                "object_background": decibel(figures["object_psnr_background_layer_alone_db"]),
                "gain": "" if gain is None else f"{gain:+.1f}",
                "total": total,
            }
        )
    return rows


def _alpha(trial: CodecTrial) -> float:
    return trial.bytes_per_image / max(1.0, trial.source_bytes_per_image)


def _codec_rows(found: Findings) -> list[dict[str, Any]]:
    return [
        {
            "codec": trial.codec + (" (this run)" if trial.this_run else ""),
            "bytes": f"{trial.bytes_per_image:,.0f}",
            "full": decibel(trial.full_db),
            "background": decibel(trial.background_db),
            "object": decibel(trial.object_db),
            "encode": rate(trial.encode_per_s),
            "decode": rate(trial.decode_per_s),
            "gain": f"{replace(found.model, alpha=_alpha(trial)).gain:.2f}x",
            "this": trial.this_run,
        }
        for trial in found.trials
    ]


def chosen_rows(found: Findings) -> list[dict[str, str]]:
    """What `auto` chose for each camera, and why not another."""
    rows = []
    for one in found.chosen:
        choice, decision = one.stats.choice, one.stats.choice.decision
        others = [f"{w.figures.codec}: {w.reason}" for w in decision.weighed if not w.chosen]
        others += [f"{dropped.codec}: {dropped.reason}" for dropped in decision.dropped]
        rows.append(
            {
                "camera": choice.camera,
                "codec": decision.codec,
                "params": ", ".join(f"{key} {value}" for key, value in decision.params.items()),
                "images": ", ".join(f"{count} {codec}" for codec, count in one.images.items()),
                "receivers": str(decision.link.receivers),
                "reason": decision.reason,
                "others": "; ".join(others),
            }
        )
    return rows


def _training(compared: Comparison | None) -> dict[str, Any]:
    if compared is None:
        return {"training_note": "", "training_rows": [], "training_metric": "", "training_seeds": False}
    rows = [
        {"name": name, "mean": f"{prose.average(values):.3f}", "seeds": _list(values) if len(values) > 1 else ""}
        for name, values in (
            ("trained on source images", compared.on_source),
            ("trained on decoded images", compared.on_decoded),
            ("one constant answer for all cameras", (compared.constant_box,)),
            ("one constant answer for each camera", (compared.constant_box_per_camera,)),
            ("untrained detector", (compared.untrained,)),
        )
    ]
    return {
        "training_note": prose.training(compared),
        "training_rows": rows,
        "training_metric": prose.metric_name(compared.metric),
        "training_seeds": len(compared.seeds) > 1,
    }


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)


def _device_rows(found: Findings) -> list[dict[str, str]]:
    rows = []
    for device in found.devices:
        check = device.completeness
        rows.append(
            {
                "device": device.name,
                "captured": "" if device.captured is None else str(device.captured),
                "uploaded": "" if device.uploaded is None else str(device.uploaded),
                "expected": "" if check is None else str(check.expected),
                "held": "" if check is None else str(check.held),
                "lost": "" if check is None else str(check.lost),
                "duplicated": "" if check is None else str(check.duplicated + check.unexpected),
                "restarts": str(device.restarts),
                "cpu": f"{device.cpu_s:.1f}",
            }
        )
    return rows


def _encoding(speed: Speed) -> str:
    if speed.images_per_s is None:
        return "nothing was encoded: the layers that edges sent were published as they came"
    return f"{rate(speed.images_per_s)} images/s ({speed.device})"


def _cost_rows(found: Findings) -> list[dict[str, str]]:
    def cpu(tier: str) -> str:
        return f"{sum(d.cpu_s for d in found.devices if d.tier == tier):.1f} s"

    rows = [
        ("encode at the fog node", _encoding(found.encode)),
        ("decode on a device, batches of 32", f"{rate(found.decode.images_per_s)} images/s ({found.decode.device})"),
        ("unpack a record on arrival", f"{rate(found.prepare_per_s)} images/s"),
        ("CPU of all edges", cpu("edge")),
        ("CPU of the fog node", cpu("fog")),
        ("CPU of the cloud server", cpu("cloud")),
        *((f"wall time: {name}", f"{seconds:.1f} s") for name, seconds in found.seconds.items()),
    ]
    return [{"name": name, "value": value} for name, value in rows]
