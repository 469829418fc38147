"""`fogline up`: a local cluster of real processes that does the main job, and a report of what it showed."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fogline import __version__
from fogline.commands.parameters import parse
from fogline.common.data.load import load_sequence
from fogline.common.data.sequence import AnnotatedSequence
from fogline.common.errors import ConfigError, FormatError

if TYPE_CHECKING:
    from rich.console import Console

CODECS = ("siren", "latent", "nerv", "jpeg2", "avif2", "auto")
UPLINKS = ("original", "resized", "avif", "roi")
NEEDS = ("torch", "safetensors", "rich", "matplotlib", "jinja2")
MARK = "fogline-run.json"  # tells a folder of ours, which may be replaced, from anybody else's
CLIP_EDGES, CLIP_FRAMES = 3, 20
CLIP_STEPS = 120  # of training on the built-in clip, so that the whole takes minutes
STEPS = 600


@dataclass(frozen=True)
class Source:
    """What is captured."""

    sequences: tuple[AnnotatedSequence, ...]
    synthetic: bool
    name: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument(
        "--data",
        action="append",
        type=Path,
        default=[],
        metavar="DIR",
        help="annotated sequence (OTB, COCO, VOC, YOLO); again",
    )
    parser.add_argument("--edges", type=int, help="edge agents, each a camera (default: 3, or one per sequence)")
    parser.add_argument("--image-codec", choices=CODECS, default="siren", help="how the fog node encodes images")
    parser.add_argument(
        "--codec-param", action="append", default=[], metavar="K=V", help="a parameter of the codec, in YAML; again"
    )
    parser.add_argument(
        "--uplink", choices=UPLINKS, default="original", help="what edges send of an image (default: original)"
    )
    parser.add_argument("--out", type=Path, default=Path("fogline-run"), metavar="DIR", help="for everything written")
    parser.add_argument("--width", type=int, default=320, help="coded and training width in pixels (default: 320)")
    parser.add_argument("--fps", type=float, default=10.0, help="of every camera (default: 10; 0: at once)")
    parser.add_argument(
        "--train-fraction", type=float, default=0.7, metavar="F", help="of each sequence is shared (default: 0.7)"
    )
    parser.add_argument("--train-steps", type=int, metavar="N", help=f"of the detector (default: {STEPS})")
    parser.add_argument(
        "--train-edges", type=int, metavar="N", help="how many edges train while images arrive (default: 1; clip: all)"
    )
    parser.add_argument("--seeds", type=int, default=1, metavar="K", help="trainings to compare (default: 1)")
    parser.add_argument("--no-train-compare", action="store_true", help="skip training on source and on decoded images")
    parser.add_argument("--no-codec-compare", action="store_true", help="skip sending a few frames through every codec")
    parser.add_argument("--keep", action="store_true", help="keep the processes' state under OUT/state")


def run(arguments: argparse.Namespace) -> int:
    """Do the job; returns 0 when every image arrived exactly once."""
    # Threads of a parallel region that spin while they wait for each other stand still where more processes than cores
    # are at work, as here: measured 30 to 100 times slower decoding. Read by torch when it is imported; inherited.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _check(arguments)
    from rich.console import Console

    console = Console()
    sequences = [load_sequence(path) for path in arguments.data]  # first: a wrong folder costs no earlier report
    out = _fresh_folder(arguments.out)
    source = _source(arguments, sequences, out, console)
    return _Run(arguments, out, source, console).go()


def _check(arguments: argparse.Namespace) -> None:
    for name, least in (("edges", 2), ("width", 32), ("seeds", 1), ("train_steps", 0), ("train_edges", 0), ("fps", 0)):
        value = getattr(arguments, name)
        if value is not None and not value >= least:  # NaN too
            raise ConfigError(f"--{name.replace('_', '-')} {value} is too small; give {least} or more")
    if not 0 < arguments.train_fraction < 1:
        raise ConfigError(f"--train-fraction {arguments.train_fraction} must lie between 0 and 1")
    if arguments.width % 16 and arguments.train_steps != 0:
        raise ConfigError(f"--width {arguments.width} can't be trained at; give a multiple of 16, or --train-steps 0")
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"`fogline up` needs {', '.join(missing)}; install them with: pip install 'fogline[torch,up]'"
        )
    from fogline.fog_node.encoders import build_encoder

    params = parse("--codec-param", arguments.codec_param)
    build_encoder(arguments.image_codec, params, "cpu")  # refuses a wrong parameter


def _fresh_folder(out: Path) -> Path:
    """An empty OUT. A folder of an earlier run is replaced; anything else is left alone."""
    if out.exists():
        if not out.is_dir() or (any(out.iterdir()) and not (out / MARK).is_file()):
            raise ConfigError(f"--out {out}: exists and was not made by `fogline up`; name another folder")
        for name in ("pki", "config", "state", "logs", "clip"):
            shutil.rmtree(out / name, ignore_errors=True)
        for name in ("report.json", "report.html"):
            (out / name).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    (out / MARK).write_text(json.dumps({"version": __version__, "started": started}) + "\n", encoding="utf-8")
    return out.resolve()


def _source(
    arguments: argparse.Namespace, sequences: Sequence[AnnotatedSequence], out: Path, console: Console
) -> Source:
    if sequences:
        return Source(_unique(sequences), False, _names(arguments.data))
    from fogline.common.data.clip import write_clip

    console.print("no --data: painting the built-in clip (synthetic images, made by Fogline's own code)")
    edges = arguments.edges or CLIP_EDGES
    cameras = min(edges, CLIP_EDGES)
    folders = write_clip(out / "clip", cameras=cameras, frames=max(CLIP_FRAMES, 4 * edges))
    return Source(tuple(load_sequence(folder) for folder in folders), True, "the built-in clip")


def _names(folders: Sequence[Path]) -> str:
    names = [folder.resolve().name for folder in folders]
    return ", ".join(names) if len(names) <= 4 else f"{len(names)} sequences"


def _unique(sequences: Sequence[AnnotatedSequence]) -> tuple[AnnotatedSequence, ...]:
    """Names tell cameras apart, so equal ones are numbered."""
    counts: dict[str, int] = {}
    named = []
    for sequence in sequences:
        count = counts[sequence.name] = counts.get(sequence.name, 0) + 1
        name = sequence.name if count == 1 else f"{sequence.name}-no{count}"
        named.append(AnnotatedSequence(name, sequence.frames, sequence.refused))
    return tuple(named)


class _Run:
    """One run, step by step."""

    def __init__(self, arguments: argparse.Namespace, out: Path, source: Source, console: Console) -> None:
        from fogline.deploy.local.cluster import Settings
        from fogline.deploy.local.plan import make_plan
        from fogline.report.training import training_size

        self.arguments, self.out, self.source, self.console = arguments, out, source, console
        edges = arguments.edges or (CLIP_EDGES if source.synthetic else max(2, len(source.sequences)))
        self.plan = make_plan(source.sequences, edges, arguments.train_fraction)
        default_steps = CLIP_STEPS if source.synthetic else STEPS
        self.steps: int = default_steps if arguments.train_steps is None else arguments.train_steps
        train_edges = (edges if source.synthetic else 1) if arguments.train_edges is None else arguments.train_edges
        self.settings = Settings(
            out=out,
            codec=arguments.image_codec,
            codec_params=parse("--codec-param", arguments.codec_param),
            width=arguments.width,
            uplink=arguments.uplink,
            height=training_size(source.sequences, arguments.width)[1],
            fps=arguments.fps,
            train_steps=self.steps,
            train_edges=train_edges,
            evaluate_every=max(10, self.steps // 6),
        )
        self.seconds: dict[str, float] = {}
        self._status = console.status("")
        self._told: dict[str, float] = {}

    def go(self) -> int:
        """Run, evaluate, write, show."""
        from fogline.deploy.local import job
        from fogline.deploy.local.cluster import Cluster
        from fogline.deploy.local.view import View

        plan = self.plan
        self.console.print(
            f"{len(plan.edges)} edges, {len(plan.images)} images of {len(plan.shared)} sequences, "
            f"codec {self.settings.codec}, uplink {self.settings.uplink}; everything is under {self.out}",
            highlight=False,
            soft_wrap=True,
        )
        began = time.perf_counter()
        cluster = Cluster(plan, self.settings)
        try:
            cluster.start()
            self.seconds["starting the processes"] = time.perf_counter() - began
            began = time.perf_counter()
            with View(self.console) as view:
                progress, tracks = job.run(cluster, view.show)
            view.finish(progress)
            self.seconds["capture to the last delivery and training step"] = time.perf_counter() - began
        finally:
            cluster.stop()
        return self._report(cluster, tracks)

    def _report(self, cluster: Any, tracks: Any) -> int:
        from fogline.report import page, terminal
        from fogline.report.document import document
        from fogline.report.evaluate import Options, evaluate

        arguments = self.arguments
        options = Options(
            title=self._title(),
            synthetic=self.source.synthetic,
            command=shlex.join(["fogline", *sys.argv[1:]]),
            environment=environment(),
            config={key: value for key, value in vars(arguments).items() if key != "data"}
            | {"out": str(self.out), "data": [str(path) for path in arguments.data], "train_steps": self.steps},
            seeds=range(arguments.seeds),
            train_steps=self.steps,
            compare_training=not arguments.no_train_compare and self.steps > 0,
            compare_codecs=not arguments.no_codec_compare,
            refused=[str(error) for sequence in self.source.sequences for error in sequence.refused],
            seconds=self.seconds,
        )
        with self._status if self.console.is_terminal else nullcontext():
            found = evaluate(cluster, tracks, options, self._tell)
        (self.out / "report.json").write_text(json.dumps(document(found), indent=1) + "\n", encoding="utf-8")
        (self.out / "report.html").write_text(page.render(found), encoding="utf-8")
        terminal.show(self.console, found)
        self.console.print(f"report: {self.out / 'report.html'}", highlight=False, soft_wrap=True)
        if not arguments.keep:
            shutil.rmtree(self.out / "state", ignore_errors=True)
        return 0 if not found.lost and not found.duplicated else FormatError.exit_code

    def _title(self) -> str:
        edges, images = len(self.plan.edges), len(self.plan.images)
        return (
            f"{edges} cameras share {images} images of {self.source.name} through one fog node ({self.settings.codec})"
        )

    def _tell(self, line: str) -> None:
        """One line per step of the evaluation; of a training's own steps, not more than a few."""
        now, kind = time.monotonic(), line.partition(":")[0]
        if self.console.is_terminal:
            self._status.update(line)
        elif kind not in self._told or now - self._told[kind] > 10:
            self._told[kind] = now
            self.console.print(f"  {line}", highlight=False, soft_wrap=True)


def environment() -> dict[str, str]:
    """What a figure depends on."""
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "fogline": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "host": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB memory",
        "processor": _processor(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
