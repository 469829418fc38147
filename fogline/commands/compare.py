"""`fogline compare DIR… --codecs a,b,…`: rate, quality and speed of image codecs on the same frames."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fogline.common.data import AnnotatedSequence, load_sequence, split_train_eval
from fogline.common.errors import ConfigError, FoglineError, InputError

if TYPE_CHECKING:
    import torch

    from fogline.compare.detector import Task
    from fogline.compare.frames import Folder
    from fogline.compare.results import Results, Training
    from fogline.compare.run import Tell

DEFAULT_CODECS = "avif2,jpeg2,siren"
REFERENCE = "avif2"  # what bytes at equal quality are relative to


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="DIR", help="an annotated sequence: OTB, COCO, VOC or YOLO"
    )
    parser.add_argument(
        "--codecs",
        default=DEFAULT_CODECS,
        metavar="a,b,…",
        help=f"image codecs, and the baselines av1-video and av1-video2 (default: {DEFAULT_CODECS})",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there (docs/comparing-codecs.md)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw rate against quality: .png, .svg or .pdf")
    parser.add_argument("--width", type=int, default=320, help="coded width in pixels, never enlarged (default: 320)")
    parser.add_argument("--frames", type=int, metavar="N", help="only the first N frames of each folder (default: all)")
    parser.add_argument(
        "--object-db",
        type=float,
        default=35.0,
        metavar="DB",
        help="object PSNR of the table at equal quality (default: 35)",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda, for codecs that use torch (default: cpu)")
    parser.add_argument(
        "--detector", action="store_true", help="also train a detector on what is decoded; codes the first 70 %% only"
    )
    parser.add_argument("--steps", type=int, default=200, help="of each detector (default: 200)")
    parser.add_argument("--seeds", type=int, default=2, help="detectors for each kind of images (default: 2)")


def run(arguments: argparse.Namespace) -> int:
    """Measure and print. Returns the exit code of the first codec or frame that was refused, else 0."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read by torch when imported; see fogline.up
    codecs = _check(arguments)
    from fogline.common.images.ladders import grid
    from fogline.compare import equal, plot, run, tables
    from fogline.compare.detector import estimate_s, make_task
    from fogline.compare.frames import load
    from fogline.compare.results import Results, Summary

    if arguments.plot:
        plot.check(arguments.plot)
    run.check(codecs, arguments.device)
    tell = run.Tell()
    sequences, refused = _sequences(arguments.folders, tell)
    results = Results(arguments.width, arguments.object_db, arguments.device)
    task: Task | None = None
    if arguments.detector:
        parts = [split_train_eval(sequence) for sequence in sequences]
        sequences = [part[0] for part in parts]
        task = make_task(sequences, [p[1] for p in parts], arguments.width, arguments.steps, arguments.seeds)
        estimate_s(task, 1 + sum(len(grid(codec).middle()) for codec in codecs), tell)
    if REFERENCE not in codecs:
        tell.line(f"no table at equal quality: add {REFERENCE} to --codecs for it")
    loaded: list[Folder] = []
    for sequence, path in zip(sequences, arguments.folders, strict=True):

        def refuse(text: str) -> None:
            refused.append(InputError(text))
            tell.line(f"left out: {text}")

        folder = load(sequence, path, arguments.width, arguments.frames, refuse)
        results.folders.append(Summary.of(folder))
        found = list(run.run(folder, codecs, arguments.device, tell, task.size if task else None))
        results.points += found
        if compared := equal.compare(found, REFERENCE, arguments.object_db):
            results.equal.append(compared)
        elif REFERENCE in codecs:
            tell.line(f"{folder.name}: no table at equal quality: {REFERENCE} has no such objects, or no background")
        loaded += [folder] if task else []
    if task:
        results.training = _train(task, loaded, results, tell)
    sys.stdout.write(tables.text(results))
    _write(results, arguments)
    failures: list[FoglineError] = [*refused, *(point.error for point in results.points if point.error)]
    return failures[0].exit_code if failures else 0


def _check(arguments: argparse.Namespace) -> list[str]:
    if importlib.util.find_spec("torch") is None:
        raise ConfigError("`fogline compare` needs torch; pip install 'fogline[torch,compare]'")
    if not 16 <= arguments.width <= 8192:
        raise ConfigError(f"--width {arguments.width}: choose 16 to 8192 pixels")
    for name in ("frames", "steps", "seeds"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name} {value} is too small; give 1 or more")
    if not 0 < arguments.object_db <= 60:
        raise ConfigError(f"--object-db {arguments.object_db}: choose a PSNR of up to 60 dB, such as 35")
    for option, path in (("--json", arguments.json), ("--plot", arguments.plot)):
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise ConfigError(f"{option} {path} can't be written: name a file in a folder that exists")
    codecs = list(dict.fromkeys(name.strip() for name in arguments.codecs.split(",") if name.strip()))
    if not codecs:
        raise ConfigError(f"--codecs {arguments.codecs!r} names none; such as --codecs {DEFAULT_CODECS}")
    return codecs


def _sequences(folders: list[Path], tell: Tell) -> tuple[list[AnnotatedSequence], list[InputError]]:
    """The folders' sequences, each under a name of its own, and the frames that they leave out."""
    sequences: list[AnnotatedSequence] = []
    refused: list[InputError] = []
    for path in folders:
        sequence = load_sequence(path)
        if any(sequence.name == other.name for other in sequences):
            raise InputError(f"{path}: another folder is called {sequence.name!r} too; rename one, results go by name")
        for error in sequence.refused:
            tell.line(f"left out: {error}")
        refused += sequence.refused
        sequences.append(sequence)
    return sequences, refused


def _train(task: Task, folders: list[Folder], results: Results, tell: Tell) -> Training:
    """Train on every setting that has decoded images of all folders."""
    import torch

    from fogline.compare.detector import source, train
    from fogline.compare.results import Learned, Training
    from fogline.compare.run import Point, describe

    settings: dict[str, list[Point]] = {}
    for point in results.points:
        if point.views is not None:
            settings.setdefault(f"{point.codec} ({describe(point.params)})", []).append(point)
    whole = {name: points for name, points in settings.items() if len(points) == len(folders)}
    decoded: dict[str, torch.Tensor] = {
        name: torch.cat([p.views for p in points if p.views is not None]) for name, points in whole.items()
    }
    found = train(task, source(task, folders), decoded, tell)
    learned = []
    for name, points in whole.items():
        measured = [p.measured for p in points if p.measured is not None]
        size = sum(m.delivered_bytes * m.images for m in measured) / sum(m.images for m in measured)
        scores, differences = found.scores(name), found.differences(name)
        learned.append(Learned(points[0].codec, points[0].params, size, scores, differences))
    return Training(task, found, tuple(learned))


def _write(results: Results, arguments: argparse.Namespace) -> None:
    from fogline.compare import plot
    from fogline.compare.results import document

    if arguments.json:
        text = json.dumps(document(results, host()), indent=1, allow_nan=False) + "\n"
        partial = arguments.json.with_name(f".{arguments.json.name}.part")
        try:
            partial.write_text(text, encoding="utf-8")
            partial.replace(arguments.json)
        except OSError as error:
            raise ConfigError(f"{arguments.json} can't be written: {error.strerror}; choose another --json") from error
    if arguments.plot:
        plot.save(results, arguments.plot)


def host() -> dict[str, object]:
    """What it ran on."""
    import platform

    import torch

    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "accelerator": accelerator,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
