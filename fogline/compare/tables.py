"""The terminal's tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from fogline.compare.curves import Cost
from fogline.compare.equal import Equal
from fogline.compare.ms_ssim import Similarity
from fogline.compare.results import Results, Summary, Training, rate
from fogline.compare.run import Point, describe

_HEAD = (
    "codec", "settings", "B/image", "+shared", "full dB", "backgr. dB", "object dB",
    "MS-SSIM full", "backgr.", "object", "encode/s", "decode/s",
)  # fmt: skip


def text(results: Results) -> str:
    """Everything, as lines for a terminal."""
    lines: list[str] = []
    for folder in results.folders:
        lines += [*_folder(folder, results.points_of(folder.name)), ""]
        equal = next((e for e in results.equal if e.folder == folder.name), None)
        lines += [*_equal(equal), ""] if equal else []
    if results.training:
        lines += [*_training(results.training), ""]
    return "\n".join(lines)


def _folder(folder: Summary, points: Sequence[Point]) -> Iterator[str]:
    sizes = ", ".join(f"{w}x{h}" for w, h in folder.sizes[:3]) + (" …" if len(folder.sizes) > 3 else "")
    yield (
        f"{folder.name}: {folder.frames} images coded at {sizes}, {folder.boxes:.3g} boxes an image, "
        f"{folder.source_bytes:,.0f} bytes as captured"
    )
    rows = [_row(point) for point in points if point.measured is not None]
    yield from grid(_HEAD, rows, left=2)
    scales = sorted({s.scales for p in points if p.measured for s in _similarities(p)[:2] if s})
    if scales and scales != [5]:
        yield f"MS-SSIM rests on {', '.join(map(str, scales))} of 5 scales: the frames are small"
    if scales:
        yield "MS-SSIM of objects: of their crops, on as many scales as fit the smallest"
    for point in points:
        if point.error is not None:
            yield f"{point.codec} ({describe(point.params)}) gave nothing: {point.error}"


def _row(point: Point) -> list[str]:
    m = point.measured
    assert m is not None
    return [
        point.codec,
        describe(point.params),
        f"{m.bytes:,.0f}",
        f"{m.delivered_bytes:,.0f}" if m.shared_bytes else "none",
        *(_number(value, "{:.1f}") for value in (m.full_db, m.background_db, m.object_db)),
        *(_number(s.value if s else None, "{:.3f}") for s in _similarities(point)),
        *(_rate(rate(m.images, seconds)) for seconds in (m.encode_s, m.decode_s)),
    ]


def _similarities(point: Point) -> list[Similarity | None]:
    m = point.measured
    return [m.full_similarity, m.background_similarity, m.object_similarity] if m else []


def _equal(equal: Equal) -> Iterator[str]:
    yield (
        f"Bytes an image, shared state included, at equal background PSNR and objects of {equal.object_db:g} dB or "
        f"more; in brackets relative to {equal.reference}"
    )
    codecs = list(equal.levels[0].costs) if equal.levels else []
    rows = []
    for level in equal.levels:
        cells = [_cost(level.costs[codec], level.ratio(codec, equal.reference)) for codec in codecs]
        rows.append([f"{level.background_db:.1f} dB" + (" (usual)" if level.usual else ""), *cells])
    means = []
    for codec in codecs:
        ratio = equal.ratios.get(codec)
        means.append("1" if codec == equal.reference else f"{ratio.ratio:.2f}x" if ratio else "no overlap")
    yield from grid(["background", *codecs], [*rows, ["mean ratio", *means]], left=1)
    if any(isinstance(cost, Cost) and cost.at_most for level in equal.levels for cost in level.costs.values()):
        yield "<= : the codec's coarsest setting that reaches such objects has a better background than that"
    for codec in codecs:
        reasons = {cost for level in equal.levels if isinstance(cost := level.costs[codec], str)}
        if reasons:
            yield f"-  : {codec}: {'; '.join(sorted(reasons))}; nothing is extrapolated"


def _cost(cost: Cost | str, ratio: float | None) -> str:
    if isinstance(cost, str):
        return "-"
    sign = "<= " if cost.at_most else ""
    return f"{sign}{cost.bytes:,.0f}" + (f" ({sign}{ratio:.2f}x)" if ratio is not None and ratio != 1 else "")


def _training(training: Training) -> Iterator[str]:
    found = training.comparison
    yield (
        f"Detector trained {found.steps} steps ({found.epochs:.1f} epochs) at {training.task.size[0]}x"
        f"{training.task.size[1]}, {len(training.task.seeds)} seeds, {found.metric} on "
        f"{len(training.task.held_out.targets)} held-out source frames"
    )
    rows = [["source", "as captured", "", f"{training.on_source:.3f}", ""]]
    for one in training.learned:
        rows.append(
            [
                one.codec,
                describe(one.params),
                f"{one.bytes:,.0f}",
                f"{statistics.fmean(one.scores):.3f}",
                ", ".join(f"{d:+.3f}" for d in one.differences),
            ]
        )
    yield from grid(["images", "settings", "B/image", found.metric, "minus source, by seed"], rows, left=2)
    yield f"untrained {found.untrained:.3f}, best constant box of each camera {found.constant_box_per_camera:.3f}"


def _rate(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def grid(head: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> Iterator[str]:
    """Columns of text, the first `left` of them aligned to the left."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, *rows):
        cells = [
            cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  " + "  ".join(cells).rstrip()
