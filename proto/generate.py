"""Generate `common/rpc/gen` from `proto/`; `--check` fails when the committed code is stale.

protoc writes imports as `from fogline.v1 import …`; ours live in a room, so the one import prefix is rewritten.
"""

from __future__ import annotations

import argparse
import filecmp
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = sorted((ROOT / "proto").glob("fogline/v1/*.proto"))
TARGET = ROOT / "common" / "rpc" / "gen"
PACKAGE = "fogline.common.rpc.gen"


def generate(into: Path) -> None:
    """Write the Python modules, their type stubs and the gRPC stubs of every proto file to `into`."""
    with tempfile.TemporaryDirectory() as raw:
        command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}"]
        command += [f"--{kind}={raw}" for kind in ("python_out", "grpc_python_out", "mypy_out", "mypy_grpc_out")]
        plugins = Path(sys.executable).parent
        command += [f"--plugin=protoc-gen-{p}={plugins / f'protoc-gen-{p}'}" for p in ("mypy", "mypy_grpc")]
        subprocess.run([*command, *map(str, PROTOS)], check=True)
        into.mkdir(parents=True, exist_ok=True)
        for source in Path(raw).rglob("*.py*"):
            text = source.read_text()
            text = re.sub(r"from fogline\.v1 import", f"from {PACKAGE} import", text)
            text = re.sub(r"import fogline\.v1\.(\w+)", rf"import {PACKAGE}.\1", text)
            text = re.sub(r"\bfogline\.v1\.(\w+_pb2)\b", rf"{PACKAGE}.\1", text)
            (into / source.name).write_text(text)
        (into / "__init__.py").write_text("")


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail when the committed code is stale")
    if not parser.parse_args().check:
        shutil.rmtree(TARGET, ignore_errors=True)
        generate(TARGET)
        return 0
    with tempfile.TemporaryDirectory() as fresh:
        generate(Path(fresh))
        made = sorted(p.name for p in Path(fresh).iterdir())
        held = sorted(p.name for p in TARGET.iterdir() if p.is_file())
        _, different, missing = filecmp.cmpfiles(fresh, TARGET, made, shallow=False)
        if made != held or different or missing:
            sys.stderr.write(f"generated code is stale: {different or missing or held}; run `make proto`\n")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
