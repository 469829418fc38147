"""Write the dashboards, or with `--check` fail when they are stale."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from fogline.deploy.grafana.fleet import FLEET
from fogline.deploy.grafana.image_plane import IMAGE_PLANE
from fogline.deploy.grafana.panels import Dashboard
from fogline.deploy.grafana.tensor_plane import TENSOR_PLANE

FOLDER = Path(__file__).resolve().parent / "dashboards"
DASHBOARDS: dict[str, Dashboard] = {"fleet": FLEET, "image-plane": IMAGE_PLANE, "tensor-plane": TENSOR_PLANE}


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m fogline.deploy.grafana", description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail when a dashboard is stale")
    check = parser.parse_args().check
    stale = 0
    for name, dashboard in DASHBOARDS.items():
        path = FOLDER / f"{name}.json"
        text = json.dumps(dashboard.json(), indent=1) + "\n"
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        if check:
            sys.stderr.write(f"{path.name} is stale; run `make docs`\n")
            stale = 1
        else:
            FOLDER.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return stale


if __name__ == "__main__":
    sys.exit(main())
