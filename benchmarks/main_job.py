"""The main job on real sequences: ten cameras share images through a fog node, once per codec.

Runs `fogline up` (one cloud server, one fog node and the edges as real processes over mTLS) and gathers its reports.

    python -m fogline.benchmarks.main_job --data DIR [--codecs siren,jpeg2,avif2] [--out DIR] [--json FILE]

`--data` holds the sequences' folders. Output, schema 1: `runs.<codec>` is the run's `report.json`; `hardware` says
what it ran on. Learning is compared by `fogline.benchmarks.learning`, which trains on source images only once.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fogline.benchmarks.hardware import describe

SCHEMA = 1
SEQUENCES = ("OTB_Crossing", "OTB_Human7", "VOT15_bag", "UAV123_boat1")
COLUMNS: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("gain vs source", lambda r: f"{r['gain_vs_source']:.2f}"),
    ("n/(1+alpha n)", lambda r: f"{r['extra']['prediction']['gain_n_over_1_plus_alpha_n']:.2f}"),
    ("gain vs resized", lambda r: f"{r['gain_vs_resized']:.2f}"),
    ("record B", lambda r: f"{r['extra']['quality_all']['record_bytes']:.0f}"),
    ("background dB", lambda r: f"{r['quality']['background_psnr_db']:.1f}"),
    ("object dB", lambda r: f"{r['quality']['object_psnr_db']:.1f}"),
    ("object layer gain dB", lambda r: f"{r['extra']['quality_all']['object_gain_over_background_db']:.1f}"),
    ("encode img/s", lambda r: "none" if r["encode"]["images_per_s"] is None else f"{r['encode']['images_per_s']:.2f}"),
    ("lost", lambda r: str(r["images_lost"])),
    ("doubled", lambda r: str(r["images_duplicated"])),
)


def run(codec: str, data: Path, edges: int, out: Path, fps: float) -> dict[str, Any]:
    """Run the job once and return its report."""
    command = [sys.executable, "-m", "fogline", "up", "--edges", str(edges), "--image-codec", codec, "--out", str(out)]
    command += ["--fps", str(fps), "--train-edges", "1", "--no-train-compare"]
    for name in SEQUENCES:
        command += ["--data", str(data / name)]
    subprocess.run(command, check=True)
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return report


def main() -> None:
    """Parse the command line, run every codec, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the sequences' folders")
    parser.add_argument("--codecs", default="avif2,jpeg2,siren")
    parser.add_argument("--edges", type=int, default=10)
    parser.add_argument("--fps", type=float, default=10.0)
    parser.add_argument("--out", type=Path, default=Path("fogline-run/main-job"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    runs: dict[str, Any] = {}
    for codec in options.codecs.split(","):
        runs[codec] = run(codec, options.data, options.edges, options.out / codec, options.fps)
        if options.json:
            result = {"schema": SCHEMA, "benchmark": "main_job", "hardware": describe(), "runs": runs}
            options.json.write_text(json.dumps(result, indent=1))
    print("| codec | " + " | ".join(name for name, _ in COLUMNS) + " |")
    print("|---" * (len(COLUMNS) + 1) + "|")
    for codec, report in runs.items():
        print(f"| {codec} | " + " | ".join(show(report) for _, show in COLUMNS) + " |")


if __name__ == "__main__":
    main()
