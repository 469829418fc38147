"""Image codecs at equal quality: bytes against `avif2`, and what that means on the network.

Each tracking sequence at its native size up to a width of 640, through every codec's ladder (`fogline compare`). Bytes
of an image include its part of the shared state, at the background PSNR that `avif2`'s default gives, with objects of
at least 35 dB. Asked: `latent` at most 0.9 times the bytes of `avif2` on the median sequence, better 0.4.

    python -m fogline.benchmarks.image_codecs --data DIR [--codecs a,b] [--sequences a,b] [--frames N]
        [--coarsest CODEC=N] [--json FILE]

The network gain is arithmetic with these bytes: ten devices, each image to nine others, all bytes up once and down
nine times. A codec's gain against `avif2` under the same uplink is (u + 9 a) / (u + 9 b), u the bytes of an upload in
that form, a and b those of an image as `avif2` and as the codec. Asked of the best neural codec: at least 1, better
1.5, on every sequence; `inr` in `targets` means codecs that are networks, `inr_or_latent` counts `latent` too.

Output, schema 1: `compare` is the JSON of `fogline compare` (docs/comparing-codecs.md); `bytes_against_avif2.<codec>`
has `sequences.<name>` (null: not reached or not measured), `at_most` (the sequences where the codec's coarsest setting
is finer than asked), `median` over those that have one, `complete`, and `mean_ratio` by sequence; `network.<sequence>`
has `upload_bytes.<form>` and `gain.<form>.<codec>`; `targets` has for each figure `value`, `must`, `aim`, and whether
they are met.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from fogline.benchmarks.hardware import describe
from fogline.common.data import load_sequence
from fogline.common.images import uplink
from fogline.common.images.forms import CODED_FORMS, Form, Qualities
from fogline.compare import equal, plot, tables
from fogline.compare.curves import Cost
from fogline.compare.equal import Equal
from fogline.compare.frames import Folder, load
from fogline.compare.results import Results, Summary, document
from fogline.compare.run import Tell, check, run

SCHEMA = 1
SEQUENCES = ("OTB_Car1", "OTB_Crossing", "OTB_Human7", "UAV123_boat1", "VOT15_bag")
CODECS = ("avif2", "jpeg2", "siren", "latent", "av1-video", "av1-video2")
REFERENCE = "avif2"
# Whose best the network's target is about. `latent` codes frames by motion from a reference picture: it is no network.
GROUPS = {"inr": ("siren", "nerv"), "inr_or_latent": ("siren", "nerv", "latent")}
WIDTH, OBJECT_DB, RECEIVERS = 640, 35.0, 9
UPLOAD_FRAMES = 12  # of a sequence, spread over it, whose uploads are measured


def main() -> None:
    """Parse the command line, measure, print tables, write JSON after every sequence."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the sequences' folders")
    parser.add_argument("--codecs", default=",".join(CODECS))
    parser.add_argument("--sequences", default=",".join(SEQUENCES))
    parser.add_argument("--frames", type=int, help="only the first so many of each sequence")
    parser.add_argument("--coarsest", action="append", default=[], metavar="CODEC=N", help="only N backgrounds of it")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    codecs = options.codecs.split(",")
    if REFERENCE not in codecs:
        parser.error(f"--codecs {options.codecs}: everything is held against {REFERENCE}; name it too")
    coarsest = {codec: int(count) for codec, count in (pair.split("=", 1) for pair in options.coarsest)}
    check(codecs, options.device)
    tell, results = Tell(), Results(WIDTH, OBJECT_DB, options.device)
    uploads: dict[str, dict[str, float]] = {}
    summary: dict[str, Any] = {}
    for name in options.sequences.split(","):
        path = options.data / name
        folder = load(load_sequence(path), path, WIDTH, options.frames, tell.line)
        results.folders.append(Summary.of(folder))
        points = list(run(folder, codecs, options.device, tell, coarsest=coarsest))
        results.points += points
        if compared := equal.compare(points, REFERENCE, OBJECT_DB):
            results.equal.append(compared)
        uploads[name] = upload_bytes(folder)
        summary = summarise(results.equal, uploads, codecs)
        if options.json:
            found = {"schema": SCHEMA, "benchmark": "image_codecs", "hardware": describe(), "frames": options.frames}
            found |= summary | {"compare": document(results, describe())}
            options.json.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    print(tables.text(results))
    print_summary(summary)
    if options.plot:
        plot.save(results, options.plot)


def upload_bytes(folder: Folder) -> dict[str, float]:
    """Mean bytes of an upload in every form."""
    step = max(1, len(folder.frames) // UPLOAD_FRAMES)
    sizes: dict[str, list[int]] = {form.text: [] for form in CODED_FORMS}
    for captured in folder.frames[::step]:
        jpeg = captured.frame.path.read_bytes()
        for form in CODED_FORMS:
            data = uplink.encode(form, jpeg, captured.content_id, captured.frame.boxes, WIDTH, Qualities())
            sizes[form.text].append(len(data))
    original = statistics.fmean(captured.source_bytes for captured in folder.frames)
    return {Form.ORIGINAL.text: original} | {form: statistics.fmean(values) for form, values in sizes.items()}


def summarise(
    found: Sequence[Equal], uploads: Mapping[str, Mapping[str, float]], codecs: Sequence[str]
) -> dict[str, Any]:
    """Ratios and gains at the level of the reference's ordinary use, and the targets."""
    costs = {e.folder: e.usual.costs if e.usual else {} for e in found}
    ratios: dict[str, Any] = {}
    for codec in codecs:
        of_sequence = {name: _ratio(costs.get(name, {}), codec) for name in uploads}
        known = [value for value in of_sequence.values() if value is not None]
        ratios[codec] = {
            "sequences": of_sequence,
            "at_most": [n for n in uploads if isinstance(c := costs.get(n, {}).get(codec), Cost) and c.at_most],
            "median": statistics.median(known) if known else None,
            "complete": len(known) == len(uploads),
            "mean_ratio": {e.folder: r.ratio if (r := e.ratios.get(codec)) else None for e in found},
        }
    network = {
        name: {
            "upload_bytes": dict(sizes),
            "gain": {form: _gains(costs.get(name, {}), codecs, upload) for form, upload in sizes.items()},
        }
        for name, sizes in uploads.items()
    }
    return {"bytes_against_avif2": ratios, "network": network, "targets": _targets(ratios, network)}


def _ratio(costs: Mapping[str, Cost | str], codec: str) -> float | None:
    own, other = costs.get(codec), costs.get(REFERENCE)
    return own.bytes / other.bytes if isinstance(own, Cost) and isinstance(other, Cost) else None


def _gains(costs: Mapping[str, Cost | str], codecs: Sequence[str], upload: float) -> dict[str, float]:
    """The gain of every codec that has a cost, over the reference with the same uploads."""
    reference = costs.get(REFERENCE)
    if not isinstance(reference, Cost):
        return {}
    return {
        codec: (upload + RECEIVERS * reference.bytes) / (upload + RECEIVERS * cost.bytes)
        for codec in codecs
        if codec != REFERENCE and isinstance(cost := costs.get(codec), Cost)
    }


def _targets(ratios: Mapping[str, Any], network: Mapping[str, Any]) -> dict[str, Any]:
    latent = ratios.get("latent", {"median": None, "complete": False})
    value = latent["median"] if latent["complete"] else None
    targets = {"latent_bytes_against_avif2": _target(value, 0.9, 0.4, lower=True)}
    for (group, members), form in product(GROUPS.items(), (Form.ORIGINAL.text, Form.ROI.text)):
        gains = [[gain for codec, gain in of["gain"][form].items() if codec in members] for of in network.values()]
        worst = min(max(of_sequence) for of_sequence in gains) if all(gains) else None
        targets[f"network_gain_of_best_{group}_{form}_uplink"] = _target(worst, 1.0, 1.5, lower=False)
    return targets


def _target(value: float | None, must: float, aim: float, *, lower: bool) -> dict[str, Any]:
    def met(bound: float) -> bool:
        return value is not None and (value <= bound if lower else value >= bound)

    return {"value": value, "must": must, "met": met(must), "aim": aim, "aim_met": met(aim)}


def print_summary(summary: Mapping[str, Any]) -> None:
    """The tables of the targets, in Markdown."""
    ratios, network = summary["bytes_against_avif2"], summary["network"]
    codecs = [codec for codec in ratios if codec != REFERENCE]
    print("Bytes relative to avif2, shared state included, at equal background PSNR, objects of 35 dB or more")
    print("| sequence | " + " | ".join(codecs) + " |\n" + "|---" * (len(codecs) + 1) + "|")
    for name in network:
        signs = {codec: "<= " * (name in ratios[codec]["at_most"]) for codec in codecs}
        cells = (signs[codec] + _show(ratios[codec]["sequences"][name]) for codec in codecs)
        print(f"| {name} | " + " | ".join(cells) + " |")
    print("| median | " + " | ".join(_show(ratios[codec]["median"]) for codec in codecs) + " |")
    for form in (Form.ORIGINAL.text, Form.ROI.text):
        print(f"\nNetwork gain over avif2, uploads {form}, n = {RECEIVERS}")
        print("| sequence | bytes up | " + " | ".join(codecs) + " |\n" + "|---" * (len(codecs) + 2) + "|")
        for name, of in network.items():
            gains = " | ".join(_show(of["gain"][form].get(codec)) for codec in codecs)
            print(f"| {name} | {of['upload_bytes'][form]:,.0f} | {gains} |")
    print()
    for name, target in summary["targets"].items():
        verdict = "met" if target["met"] else "NOT met" if target["value"] is not None else "not measured"
        aim = ", aim met" if target["aim_met"] else f", aim {target['aim']}"
        print(f"{name}: {_show(target['value'])}, must {target['must']}: {verdict}{aim}")


def _show(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"


if __name__ == "__main__":
    main()
