"""`fogline explain`: what the codec planner weighs for a camera and why, and where training should happen.

On folders every candidate is measured here and now; with `--fog` it is told what a fog node with `encoder.codec: auto`
measured and chose, from its data_dir, while it runs or afterwards.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from fogline.common.data.load import load_sequence
from fogline.common.data.sequence import AnnotatedSequence
from fogline.common.errors import ConfigError, InputError
from fogline.common.images.communication import Place, communication_of
from fogline.common.images.forms import Form
from fogline.common.images.planning import Link, decide
from fogline.common.images.sizes import coded_size
from fogline.explain import quantities
from fogline.explain.document import Explained, document
from fogline.explain.folder import measure
from fogline.explain.text import lines
from fogline.fog_node.encoders.auto_params import auto_params
from fogline.fog_node.encoders.candidates import chosen, suited
from fogline.fog_node.stats import read_choices, read_images, read_needs

_FOLDER_OPTIONS: dict[str, object] = {
    "receivers": 1,
    "downlink": None,
    "uplink": None,
    "uplink_form": Form.ORIGINAL.text,
    "objective": "bytes",
    "background_db": 28.0,
    "object_db": 35.0,
    "candidates": None,
    "max_encode_s": 10.0,
    "frames": 6,
    "width": 320,
    "device": "cpu",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument(
        "folders", nargs="*", type=Path, metavar="DIR", help="an annotated sequence: OTB, COCO, VOC or YOLO"
    )
    parser.add_argument("--fog", type=Path, metavar="DATA_DIR", help="instead: the data_dir of a fog node with auto")
    # Without defaults here, so that --fog can refuse whatever it has no use for.
    parser.add_argument("--receivers", type=int, metavar="N", help="of every image (default: 1)")
    parser.add_argument("--downlink", metavar="RATE", help="of the fog node to all receivers: 2MB/s, 16Mbit/s")
    parser.add_argument("--uplink", metavar="RATE", help="of a camera to the fog node; both default to 16Mbit/s")
    parser.add_argument("--uplink-form", choices=[form.text for form in Form], help="what goes up")
    parser.add_argument("--objective", choices=("bytes", "time"), help="what is least (default: bytes)")
    parser.add_argument("--background-db", type=float, metavar="DB", help="PSNR to reach (default: 28)")
    parser.add_argument("--object-db", type=float, metavar="DB", help="PSNR to reach (default: 35)")
    parser.add_argument("--candidates", metavar="A,B", help="codecs to weigh (default: all that suit this host)")
    parser.add_argument("--max-encode-s", type=float, metavar="S", help="an image may take (default: 10)")
    parser.add_argument("--frames", type=int, metavar="N", help="sampled of each folder (default: 6)")
    parser.add_argument("--width", type=int, help="coded width in pixels, never enlarged (default: 320)")
    parser.add_argument("--device", help="cpu or cuda, for codecs that use torch (default: cpu)")
    parser.add_argument("--model-bytes", metavar="W", help="of one model update (default: the built-in detector's)")
    parser.add_argument("--images-per-update", type=float, metavar="K", help="new images from one update to the next")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there too")


def run(arguments: argparse.Namespace) -> int:
    """Print every camera. Returns 3 when a frame was refused."""
    if bool(arguments.folders) == (arguments.fog is not None):
        raise ConfigError("give folders with images, or --fog with a fog node's data_dir: one of the two")
    given = [name for name in _FOLDER_OPTIONS if getattr(arguments, name) is not None]
    if arguments.fog is not None and given:
        option = "--" + given[0].replace("_", "-")
        raise ConfigError(f"{option} is for folders; with --fog it is told what the fog node weighed: leave it out")
    for name in set(_FOLDER_OPTIONS) - set(given):
        setattr(arguments, name, _FOLDER_OPTIONS[name])
    for name, least in (("receivers", 1), ("frames", 1), ("width", 16)):
        if getattr(arguments, name) < least:
            raise ConfigError(f"--{name} {getattr(arguments, name)} is too small; give {least} or more")
    images = arguments.images_per_update
    if images is not None and not 0 < images < math.inf:
        raise ConfigError(f"--images-per-update {images} must be above 0")
    model_bytes = _model_bytes(arguments.model_bytes)
    refused = 0
    if arguments.fog is not None:
        cameras = list(_from_fog(arguments.fog, model_bytes, images))
    else:
        sequences = [load_sequence(folder) for folder in arguments.folders]  # first: a wrong folder costs no time
        for sequence in sequences:
            for error in sequence.refused:
                sys.stderr.write(f"left out: {error}\n")
                refused += 1
        cameras = list(_measured(arguments, sequences, model_bytes))
    sys.stdout.write("\n\n".join("\n".join(lines(one)) for one in cameras) + "\n")
    if arguments.json is not None:
        source = "folders" if arguments.fog is None else "fog"
        try:
            arguments.json.write_text(json.dumps(document(source, cameras), indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--json {arguments.json} can't be written: {error.strerror}; choose another") from error
    return InputError.exit_code if refused else 0


def _measured(
    arguments: argparse.Namespace, sequences: Sequence[AnnotatedSequence], model_bytes: float | None
) -> Iterator[Explained]:
    names = None if arguments.candidates is None else tuple(arguments.candidates.split(","))
    params = auto_params(
        {
            "objective": arguments.objective,
            "background_db": arguments.background_db,
            "object_db": arguments.object_db,
            "candidates": names,
            "max_encode_s": arguments.max_encode_s,
            "downlink_bit_s": _rate("--downlink", arguments.downlink),
            "uplink_bit_s": _rate("--uplink", arguments.uplink),
        }
    )
    candidates = tuple(suited(chosen(params.candidates), names is not None, arguments.device))
    link = Link(arguments.receivers, params.downlink_bit_s, params.uplink_bit_s)
    for sequence in sequences:
        found = measure(
            sequence,
            candidates,
            params.goal,
            width=arguments.width,
            frames=arguments.frames,
            form=Form.of(arguments.uplink_form),
            max_encode_s=params.max_encode_s,
            device=arguments.device,
            tell=lambda line: sys.stderr.write(f"measuring {line}\n"),
        )
        decision = decide(params.goal, link, found.figures, found.dropped)
        if decision is None:
            reasons = "; ".join(f"{one.codec}: {one.reason}" for one in found.dropped)
            raise InputError(
                f"{sequence.name}: no candidate can be measured ({reasons}); name others, or give more time"
            )
        delivered = next(one.figures.delivered_bytes for one in decision.weighed if one.chosen)
        yield Explained(
            found.camera,
            found.size,
            decision,
            communication_of(link.n, found.source_bytes, delivered, found.uploaded_bytes / found.source_bytes),
            None if model_bytes is None else Place(model_bytes, delivered, arguments.images_per_update),
            found.uploaded_bytes,
        )


def _from_fog(data_dir: Path, model_bytes: float | None, images_per_update: float | None) -> Iterator[Explained]:
    """The newest choices of a fog node, with the sizes of what it took in and published for these cameras."""
    choices = read_choices(data_dir)
    if not choices:
        raise InputError(f"{data_dir}: this fog node has chosen no codec; set encoder.codec: auto, and send images")
    images, needs = read_images(data_dir), read_needs(data_dir)
    width = max(one.choice.width for one in choices)  # that it codes at, or as near as any camera comes to it
    for one in choices:
        choice = one.choice
        size = (choice.width, choice.height)
        published = [
            i
            for i in images
            if i.camera == choice.camera and i.record_bytes is not None and coded_size(*i.source_size, width) == size
        ]
        shared = {blob for i in published if i.cursor is not None for blob in needs.get(i.cursor, ())}
        taken = [i.source_bytes for i in published]
        uploaded = sum(taken) / len(taken) if taken else None
        records = [i.record_bytes for i in published if i.record_bytes is not None]
        delivered = (sum(records) + sum(size for _, size in shared)) / len(records) if records else None
        # The JPEG as captured is known only where it was what came.
        as_captured = all(i.form is Form.ORIGINAL for i in published)
        yield Explained(
            choice.camera,
            (choice.width, choice.height),
            choice.decision,
            communication_of(choice.decision.link.n, uploaded, delivered)
            if uploaded and delivered and as_captured
            else None,
            Place(model_bytes, delivered, images_per_update) if model_bytes and delivered else None,
            uploaded,
        )


def _rate(option: str, text: str | None) -> float | None:
    return None if text is None else quantities.rate(option, text)


def _model_bytes(text: str | None) -> float | None:
    """W as given, or the size of the detector that edges train here; None where that can't be known."""
    if text is not None:
        return quantities.size("--model-bytes", text)
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("safetensors") is None:
        return None
    from fogline.common.models.checkpoint import save_weights
    from fogline.common.models.detector import Detector

    return float(len(save_weights(Detector())))
