"""The sentences of the page: what the figures mean, in plain words, with what speaks against them."""

from __future__ import annotations

from fogline.deploy.local.view import human_bytes, human_seconds
from fogline.report.findings import Comparison, Findings

ADDITIVE = (
    "The fog node codes the whole frame coarsely (background layer) and then, for each box, the difference between the "
    "original and that decoded background (object layer). Grey in the difference pictures is no difference."
)
REPLACING = (
    "The fog node codes the whole frame at a low quality (background layer) and each box once more at a higher one "
    "(object layer). Grey in the difference pictures is no difference."
)
CODECS = (
    "Encoded and decoded after the run on the host that ran it: up to 8 frames of one camera, one after "
    "the other. Bytes are whole records and shared state, each blob spread over the images it serves, "
    "all of the run's for its own codec, only these frames for the others. The last column is "
    "n/(beta + alpha n) for these frames under this run's uplink, without control traffic."
)
COMPLETENESS = (
    "Counted after the run from the files of each device: every record was read, its checksums verified and its "
    "content id compared with the SHA-256 of the source frames. Lost: expected and not there. Duplicated: held twice, "
    "or held where it does not belong."
)
BYTES = (
    "Both baselines are the bytes of the JPEGs alone, every image to every receiver, without any header: they are "
    "flattered a little. Fogline's bytes are everything on the wire between devices, fog node and cloud server: "
    "messages, HTTP/2 and TLS, handshakes and heartbeats; TCP/IP headers and retransmissions are not counted."
)


def metric_name(metric: str) -> str:
    """As people write it."""
    return {"iou": "IoU", "ap50": "AP50"}.get(metric, metric)


def problems(found: Findings) -> list[str]:
    """What went wrong, if anything."""
    if not found.lost and not found.duplicated:
        return []
    return [
        f"Not complete: {found.lost} deliveries lost, {found.duplicated} doubled or misplaced. See the table of "
        "devices."
    ]


def summary(found: Findings) -> list[str]:
    """What happened, and the caveat about resizing."""
    traffic = found.traffic
    deliveries = sum(d.completeness.held for d in found.edges if d.completeness)
    happened = (
        f"{len(found.edges)} cameras captured {found.images} images; every camera received the images of all others, "
        f"{deliveries} deliveries in all. Through the fog node, uplink {found.uplink}, codec {found.codec}, that put "
        f"{human_bytes(traffic.total)} on the wire. Had the cameras sent their JPEGs straight to each other, it would "
        f"have been {human_bytes(traffic.serverless)}."
    )
    resizing = traffic.serverless / max(1, traffic.serverless_resized)
    resized = human_bytes(traffic.serverless_resized)
    if traffic.gain_vs_resized >= 1:
        caveat = (
            f"Much of any such gain is resizing. The detector trains at a width of {found.width} pixels; merely "
            f"sending the JPEGs resized to that (quality 75) would have taken {resized}, a factor of {resizing:.2f} "
            f"less. What the fog node and the codec add to that is a factor of {traffic.gain_vs_resized:.2f}."
        )
    else:
        caveat = (
            f"Mind the second figure: JPEGs resized to the training width of {found.width} pixels (quality 75) and "
            f"sent directly would have taken only {resized}, less than this run. All of the gain, and more, is "
            f"resizing: {_goes_up(found)} once, which weighs more the fewer the receivers of an image "
            f"({found.receivers_per_image:.3g} here)."
        )
    return [happened, caveat, *_beaten(found)]


def _goes_up(found: Findings) -> str:
    return "every JPEG goes up at full size" if found.uplink == "original" else f"every image goes up ({found.uplink})"


def _beaten(found: Findings) -> list[str]:
    this = next((trial for trial in found.trials if trial.this_run), None)
    if this is None:
        return []
    better = [
        trial.codec
        for trial in found.trials
        if not trial.this_run
        and trial.bytes_per_image <= this.bytes_per_image
        and trial.full_db >= this.full_db
        and (trial.object_db or 0.0) >= (this.object_db or 0.0)
    ]
    if not better:
        return []
    return [
        f"On the same frames {' and '.join(better)} took fewer bytes at a higher PSNR than {this.codec}; see below."
    ]


def chosen(found: Findings) -> str:
    """Over the table of what `auto` chose."""
    if not found.chosen:
        return ""
    goal = found.chosen[0].stats.choice.decision.goal
    return (
        f"With the codec auto the fog node tries every candidate on a few frames of each camera and takes the one with "
        f"the least {goal.objective} of those that reach {goal.background_db:g} dB of background and "
        f"{goal.object_db:g} dB of objects. What was weighed last:"
    )


def gain(found: Findings) -> str:
    """The formula beside the measurement."""
    model = found.model
    text = (
        f"A byte of JPEG becomes beta = {model.beta:.3f} bytes on the way up and alpha = {model.alpha:.3f} bytes of "
        f"record. With n = {model.receivers:.3g} receivers, n/(beta + alpha n) predicts {model.gain:.2f}x; measured, "
        f"with control, it is {found.traffic.gain_vs_source:.2f}x. "
    )
    if found.uplink == "original":
        return text + "The ceiling is n/beta, about n, as every JPEG goes up once as captured; see --uplink."
    return text + (
        f"With JPEGs as captured on the uplink it would be n/(1 + alpha n) = {model.gain_as_captured:.2f}x. Quality is "
        f"measured against the captured JPEGs, so it holds what the uplink form ({found.uplink}) lost, too."
    )


def delay(found: Findings) -> str:
    """Under the delay chart."""
    return (
        f"From capture to decodable at a receiver: half within {human_seconds(found.delay.p50)}, 95 % within "
        f"{human_seconds(found.delay.p95)}. All cameras start at once, so images queue for the encoder."
    )


def fleet(found: Findings) -> str:
    """Over the chart of the edges' own training."""
    edges = "one edge agent" if len(found.fleet) == 1 else f"each of {len(found.fleet)} edge agents"
    return (
        f"The detector on {edges}, trained on what it had received so far and evaluated on held-out frames as it went."
    )


def training(compared: Comparison) -> str:
    """What was compared, and whether it means something."""
    name = metric_name(compared.metric)
    source, decoded = average(compared.on_source), average(compared.on_decoded)
    count = len(compared.seeds)
    text = (
        f"The same small detector, trained twice for {compared.steps} steps ({compared.epochs:.1f} epochs) on the same "
        f"{compared.images} images: once on the captured originals, once on what came out of the codec; then evaluated "
        f"on frames that nobody shared, as captured. {f'{count} seeds, paired' if count > 1 else 'One seed'}. {name} "
        f"is {source:.3f} on source and {decoded:.3f} on decoded images, a difference of {decoded - source:+.3f}."
    )
    if count == 1:
        text += " One seed says little: the same training with another seed can differ as much (--seeds 3)."
    if source <= compared.constant_box_per_camera + 0.02:
        text += (
            f" But giving one constant answer for each camera reaches {compared.constant_box_per_camera:.3f}: the "
            "detector has not learnt enough here for this comparison to mean much. Train longer."
        )
    return text


def average(values: tuple[float, ...]) -> float:
    """The mean over seeds."""
    return sum(values) / len(values)
