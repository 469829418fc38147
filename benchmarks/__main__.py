"""Every published figure, one benchmark after the other, results as JSON files. Takes hours.

python -m fogline.benchmarks [--data DIR] [--out DIR]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

# name: the folder of DIR that it takes as --data
BENCHMARKS = {
    "main_job": "tracking",
    "learning": ".",
    "siren_encode": "tracking",
    "latent_encode": "tracking",
    "decode": "tracking",
    "loader": "tracking",
    "image_codecs": "tracking",
    "uplink": "tracking",
    "auto_choice": "tracking",
    "split_policies": ".",
    "tensor_transport": ".",
    "tensor_sessions": ".",
    "tensor_ahead": ".",
    "split_exactness": ".",
    "idle_agent": ".",
    "tensor_codecs": ".",
}


def main() -> None:
    """Parse the command line and run them; the first that fails ends it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    default = os.environ.get("FOGLINE_DATA", str(Path(__file__).resolve().parents[2] / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=Path(default), help="folder with tracking/ and bccd_detection/")
    parser.add_argument("--out", type=Path, default=Path("fogline-run/benchmarks"), help="folder for the results")
    options = parser.parse_args()
    if not (options.data / "tracking").is_dir():
        parser.error(
            f"--data {options.data}: holds no tracking/; name the folder with the sequences, or set FOGLINE_DATA"
        )
    options.out.mkdir(parents=True, exist_ok=True)
    for name, folder in BENCHMARKS.items():
        print(f"{name} …", flush=True)
        command = [sys.executable, "-m", f"fogline.benchmarks.{name}", "--data", str(options.data / folder)]
        done = subprocess.run([*command, "--json", str(options.out / f"{name}.json")], check=False)
        if done.returncode:
            sys.exit(done.returncode)


if __name__ == "__main__":
    main()
