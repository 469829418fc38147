"""From a finished run to its findings: what the devices hold, how good it is, and what it cost."""

from __future__ import annotations

import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fogline.common.images.codec import codec_of
from fogline.common.images.decode import BatchDecoder
from fogline.common.images.record import ImageRecord
from fogline.deploy.local.cluster import Cluster
from fogline.deploy.local.job import Track
from fogline.deploy.local.plan import Plan, PlannedImage
from fogline.fog_node.encoders import TRIED_ON_FEW
from fogline.fog_node.stats import ChoiceStats, ImageStats, read_choices, read_images
from fogline.report import exhibits, traffic
from fogline.report.charts import Curve
from fogline.report.findings import CameraCodec, Comparison, Delay, Device, Findings, Score, Speed
from fogline.report.frames import resized_bytes
from fogline.report.holdings import Holdings, check, published_twice, read_holdings
from fogline.report.measure import Received, decode_rate, prepare, renderings, score
from fogline.report.pictures import Exhibit, Panel
from fogline.report.training import compare_on
from fogline.report.trials import Trial, parts_of, trial, trial_of_this_run

_TRIAL_FRAMES = 8
_STRIPS = 2


@dataclass(frozen=True)
class Options:
    """What the user chose about the evaluation, and what the page says about the run."""

    title: str
    synthetic: bool
    command: str
    environment: Mapping[str, str]
    config: Mapping[str, Any]
    seeds: Sequence[int]
    train_steps: int
    compare_training: bool
    compare_codecs: bool
    refused: Sequence[str]
    seconds: dict[str, float] = field(default_factory=dict)  # of the phases before; the evaluation adds its own


def evaluate(cluster: Cluster, tracks: Mapping[str, Track], options: Options, tell: Callable[[str], None]) -> Findings:
    """Read everything that the stopped cluster left behind. `tell` is given a line for each step."""
    plan, settings = cluster.plan, cluster.settings
    torch.set_num_threads(1)  # small networks decode no faster on more, and far slower where cores are busy
    with _timed(options, "checking and measuring"):
        tell("checking every device's library")
        libraries = [read_holdings(edge.name, cluster.data_dir(edge.name) / "library") for edge in plan.edges]
        checks = {library.edge: check(library, plan.expected(library.edge)) for library in libraries}
        stats = read_images(cluster.data_dir("fog"))
        tell("decoding every record and comparing it with its original")
        decoder = BatchDecoder()
        records, shared = records_of(libraries, plan)
        received, prepare_rate = prepare(decoder, records, shared)
        scores = [score(image, pixels) for image, pixels in renderings(decoder, received)]
        shown = _exhibits(decoder, received, scores)
        rate = decode_rate(decoder, received)
    encode = encode_speed(stats, _encoder_device(cluster.supervisor.children["fog"].spec.log))
    trials: list[Trial] = []
    strips: list[list[Panel]] = []
    if options.compare_codecs:
        with _timed(options, "the same frames through other codecs"):
            parts = parts_of(records, shared)
            trials, strips = _trials(received, parts, decoder, cluster, encode.images_per_s, tell)
    comparison: Comparison | None = None
    if not plan.trainable:
        tell("nothing is trained: no shared frame has a box, or no held-out one")
    elif options.compare_training and received:
        with _timed(options, "training on source and on decoded images"):
            comparison = compare_on(
                plan,
                received,
                (settings.width, settings.height),
                steps=options.train_steps,
                seeds=options.seeds,
                tell=tell,
            )
    flows = _flows(cluster)
    counted = _traffic(plan, flows, settings.width)
    receivers = sum(len(plan.expected(edge.name)) for edge in plan.edges) / max(1, len(plan.images))
    sizes = {image.size for image in received}
    return Findings(
        title=options.title,
        synthetic=options.synthetic,
        codec=settings.codec,
        codec_params=settings.codec_params,
        chosen=_chosen(read_choices(cluster.data_dir("fog")), stats),
        uplink=settings.uplink,
        uplink_forms=Counter(image.form.text for image in stats),
        size=next(iter(sizes)) if len(sizes) == 1 else None,
        width=settings.width,
        images=len(plan.images),
        receivers_per_image=receivers,
        traffic=counted,
        flows=flows,
        model=traffic.model_of(counted, receivers, counted.source),
        scores=scores,
        encode=encode,
        decode=Speed(rate, "cpu, 1 thread"),
        prepare_per_s=prepare_rate,
        delay=_delay(libraries),
        devices=_devices(cluster, checks),
        published_twice=published_twice([image.content_id for image in stats if image.cursor is not None]),
        comparison=comparison,
        metric=plan.metric,
        fleet={name: Curve(tuple(t.steps), (tuple(t.metric),)) for name, t in tracks.items() if t.steps},
        trials=[one.figures for one in trials],
        exhibits=shown,
        trial_strips=strips,
        refused=options.refused,
        seconds=options.seconds,
        environment=options.environment,
        command=options.command,
        config=options.config,
    )


@contextmanager
def _timed(options: Options, name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    options.seconds[name] = time.perf_counter() - began


def records_of(
    libraries: Sequence[Holdings], plan: Plan
) -> tuple[list[tuple[ImageRecord, int, PlannedImage]], dict[bytes, bytes]]:
    """Every image's record once, from the first device that holds it, and all shared state."""
    images = plan.images
    found: dict[bytes, tuple[ImageRecord, int, PlannedImage]] = {}
    shared: dict[bytes, bytes] = {}
    for library in libraries:
        for held in library.held:
            if held.content_id in found or held.content_id not in images:
                continue
            record = library.record(held.digest)
            found[held.content_id] = (record, held.size, images[held.content_id])
            shared.update({digest: library.shared(digest) for digest in record.shared if digest not in shared})
    return [found[content_id] for content_id in images if content_id in found], shared


def _exhibits(decoder: BatchDecoder, received: Sequence[Received], scores: Sequence[Score]) -> list[Exhibit]:
    chosen = exhibits.choose(scores)
    names = {figures.content_id: (name, figures) for name, figures in chosen}
    wanted = [image for image in received if image.record.content_id in names]
    pictures = {image.record.content_id: (image, pixels) for image, pixels in renderings(decoder, wanted)}
    return [exhibits.exhibit(name, *pictures[figures.content_id], figures) for name, figures in chosen]


def _trials(
    received: Sequence[Received],
    parts: Mapping[bytes, float],
    decoder: BatchDecoder,
    cluster: Cluster,
    encode_rate: float | None,
    tell: Callable[[str], None],
) -> tuple[list[Trial], list[list[Panel]]]:
    """This run's codec and others on a few frames of one camera."""
    settings = cluster.settings
    sample = in_a_row(received, _TRIAL_FRAMES)
    if not sample:
        return [], []
    frames = [image.captured for image in sample]
    trials = [trial_of_this_run(settings.codec, settings.codec_params, sample, decoder, encode_rate, parts)]
    for codec in TRIED_ON_FEW:
        if codec != settings.codec:
            tell(f"the same {len(frames)} frames through {codec}")
            trials.append(trial(frames, settings.width, codec, {}))
    originals = {image.record.content_id: pixels.original for image, pixels in renderings(decoder, sample)}
    return trials, exhibits.codec_strips(frames[:_STRIPS], originals, trials)


def in_a_row(received: Sequence[Received], count: int) -> list[Received]:
    """Frames of the camera that has most, one after the other, from its middle: spread ones have no shared state."""
    cameras: dict[str, list[Received]] = {}
    for image in received:
        cameras.setdefault(image.captured.camera, []).append(image)
    most = max(cameras.values(), key=len, default=[])
    start = max(0, len(most) - count) // 2
    return most[start : start + count]


def encode_speed(stats: Sequence[ImageStats], device: str) -> Speed:
    """From what the fog node noted for each image that it encoded: its share of its batch's wall time."""
    spent = [image.encode_s for image in stats if image.encode_s]
    return Speed(len(spent) / sum(spent) if spent else None, device)


def _chosen(choices: Sequence[ChoiceStats], stats: Sequence[ImageStats]) -> list[CameraCodec]:
    """Each camera's choice, with what its images were really coded with."""
    counts: dict[str, Counter[str]] = {}
    for image in stats:
        if image.layers:
            counts.setdefault(image.camera, Counter())[codec_of(image.layers[0].codec, 1).name] += 1
    return [CameraCodec(one, dict(counts.get(one.choice.camera, {}))) for one in choices]


def _encoder_device(log: Path) -> str:
    """The device that the fog node's encoder said it runs on, the last time it was started."""
    device = "unknown"
    with log.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if '"codec"' in line and '"device"' in line:
                try:
                    device = str(json.loads(line)["device"])
                except (ValueError, KeyError, TypeError):
                    continue
    return device


def _flows(cluster: Cluster) -> list[traffic.Flow]:
    """Every edge's own links, and the fog node's link to the cloud; nothing is counted at both ends."""
    sums: dict[tuple[str, str, str], float] = {}
    for name, child in cluster.supervisor.children.items():
        for labels, value in cluster.counters[name].labelled("fogline_link_bytes_total").items():
            values = dict(labels)
            if child.spec.tier == "edge" or (child.spec.tier == "fog" and values["link"] == "fog-cloud"):
                key = (values["link"], "up" if values["direction"] == "sent" else "down", values["kind"])
                sums[key] = sums.get(key, 0.0) + value
    return [traffic.Flow(*key, value) for key, value in sorted(sums.items())]


def _traffic(plan: Plan, flows: Sequence[traffic.Flow], width: int) -> traffic.Traffic:
    resized = {content_id: resized_bytes(image, width) for content_id, image in plan.images.items()}
    wanted = [content_id for edge in plan.edges for content_id in plan.expected(edge.name)]
    return traffic.count(
        flows,
        source=sum(image.size for image in plan.images.values()),
        source_resized=sum(resized.values()),
        serverless=sum(plan.images[content_id].size for content_id in wanted),
        serverless_resized=sum(resized[content_id] for content_id in wanted),
    )


def _delay(libraries: Sequence[Holdings]) -> Delay:
    delays = sorted(held.delay_s for library in libraries for held in library.held)
    if len(delays) < 2:
        only = delays[0] if delays else 0.0
        return Delay(only, only, tuple(delays))
    cuts = statistics.quantiles(delays, n=20, method="inclusive")
    return Delay(cuts[9], cuts[18], tuple(delays))


def _devices(cluster: Cluster, checks: Mapping[str, Any]) -> list[Device]:
    plans = {edge.name: edge for edge in cluster.plan.edges}
    devices = []
    for name, child in cluster.supervisor.children.items():
        counters, edge = cluster.counters[name], plans.get(name)
        uploaded = None
        if edge is not None:
            outcomes = ("stored", "duplicate")
            uploaded = round(sum(counters.last("fogline_uploaded_images_total", outcome=o) or 0.0 for o in outcomes))
        devices.append(
            Device(
                name=name,
                tier=child.spec.tier,
                cpu_s=child.cpu_seconds,
                restarts=child.restarts,
                captured=None if edge is None else len(edge.content_ids),
                uploaded=uploaded,
                completeness=checks.get(name),
            )
        )
    return devices
