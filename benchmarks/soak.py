"""A cluster for half an hour: memory and file descriptors of every process over time, and what its logs complain of.

    python -m fogline.benchmarks.soak [--minutes 30] [--edges 10] [--fps 0.3] [--json FILE]

`fogline up` with the codec `avif2` and without training: a cloud server, a fog node and edge agents, each a camera of
the built-in clip that captures at `fps`; every image goes to all others. Every process is looked at every 10 s. The
first fifth of the time is start-up and is left out; of the rest the medians of first and last quarter are compared.

Output, schema 1: `processes[]` has `name`, `rss_mib` and `descriptors`, each `[early, late, most]`; `images`, `lost`,
`duplicated`; `log_lines` by level; `complaints`: error lines, at most 50. A process that was started again is two.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from fogline.benchmarks.hardware import describe
from fogline.common.data.clip import write_clip

SCHEMA = 1
EVERY_S = 10.0
SHARED = 0.98  # of the frames; `fogline up` wants some to evaluate on


def main() -> None:
    """Parse the command line, run, print, write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--edges", type=int, default=10)
    parser.add_argument("--fps", type=float, default=0.3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        result = soak(Path(folder), options.minutes, options.edges, options.fps)
    for one in result["processes"]:
        rss, files = one["rss_mib"], one["descriptors"]
        print(f"{one['name']:<24} {rss[0]:7.1f} -> {rss[1]:7.1f} MiB   {files[0]:4.0f} -> {files[1]:4.0f} descriptors")
    print(f"{result['images']} images, {result['lost']} lost, {result['duplicated']} doubled; {result['log_lines']}")
    print("\n".join(result["complaints"]))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def soak(folder: Path, minutes: float, edges: int, fps: float) -> dict[str, Any]:
    """Run the cluster and watch it."""
    frames = max(4, round(minutes * 60 * fps / SHARED))
    clip = write_clip(folder / "clip", cameras=edges, frames=frames, width=160, height=96)
    out = folder / "out"
    command = [sys.executable, "-m", "fogline", "up", "--edges", str(edges), "--image-codec", "avif2", "--width", "160"]
    command += ["--fps", str(fps), "--train-fraction", str(SHARED), "--train-edges", "0", "--train-steps", "0"]
    command += ["--no-train-compare", "--no-codec-compare", "--out", str(out)]
    command += [word for path in clip for word in ("--data", str(path))]
    samples: dict[tuple[str, int], list[tuple[float, float, int]]] = defaultdict(list)
    started = time.monotonic()
    with subprocess.Popen(command) as job:
        tree = psutil.Process(job.pid)
        while job.poll() is None:
            for child in tree.children(recursive=True):
                try:
                    with child.oneshot():
                        sample = (time.monotonic() - started, child.memory_info().rss / 2**20, child.num_fds())
                        samples[_name(child.cmdline()), child.pid].append(sample)
                except psutil.Error:  # it ended meanwhile
                    continue
            time.sleep(EVERY_S)
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    lines, complaints = _logs(out / "logs")
    return {
        "schema": SCHEMA,
        "hardware": describe(),
        "minutes": minutes,
        "edges": edges,
        "fps": fps,
        "exit_code": job.returncode,
        "images": report["images"],
        "lost": report["images_lost"],
        "duplicated": report["images_duplicated"],
        "processes": [_judge(name, found, minutes * 60) for (name, _), found in sorted(samples.items())],
        "log_lines": lines,
        "complaints": complaints[:50],
    }


def _judge(name: str, found: list[tuple[float, float, int]], seconds: float) -> dict[str, Any]:
    """Early and late medians, and the most, of what came after start-up and before the job's end."""
    kept = [sample for sample in found if seconds / 5 <= sample[0] <= seconds] or found
    quarter = max(1, len(kept) // 4)

    def course(index: int) -> list[float]:
        values = [float(sample[index]) for sample in kept]
        early, late = statistics.median(values[:quarter]), statistics.median(values[-quarter:])
        return [round(early, 1), round(late, 1), round(max(values), 1)]

    return {"name": name, "samples": len(kept), "rss_mib": course(1), "descriptors": course(2)}


def _name(words: list[str]) -> str:
    """The program and, of agents, which one."""
    module = next((word for word in words if word.startswith("fogline.")), words[-1] if words else "?")
    config = next((Path(word).stem for word in words if word.endswith((".yaml", ".json"))), "")
    return f"{module.removeprefix('fogline.')} {config}".strip()[:60]


def _logs(folder: Path) -> tuple[dict[str, int], list[str]]:
    levels: Counter[str] = Counter()
    complaints = []
    for path in sorted(folder.iterdir()):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if not line.startswith("{"):
                continue
            level = str(json.loads(line).get("level"))
            levels[level] += 1
            if level in ("error", "critical"):
                complaints.append(f"{path.name}: {line[:400]}")
    return dict(levels), complaints


if __name__ == "__main__":
    main()
