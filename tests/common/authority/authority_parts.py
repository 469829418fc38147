"""A real certificate service, and requests that a device would make or never should."""

from __future__ import annotations

import contextlib
import io
import json
import select
import subprocess
import sys
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from fogline.cli import main
from fogline.common import addresses
from fogline.common.addresses import Address


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


class Service:
    """A `fogline ca serve` process; its standard error is `serve.log` beside the authority's folder."""

    def __init__(self, folder: Path, flags: tuple[str, ...] = (), port: int = 0) -> None:
        self.folder, self.log = folder, folder.parent / "serve.log"
        command = [sys.executable, "-m", "fogline", "ca", "serve", "--dir", str(folder), "--metrics-port", "-1"]
        with self.log.open("a") as log:
            self._process: subprocess.Popen[str] | None = subprocess.Popen(
                [*command, "--listen", f"127.0.0.1:{port}", *flags], stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], 30)
        line = self._process.stdout.readline() if readable else ""
        if not line.startswith("ready "):
            self.kill()
            raise AssertionError(f"the certificate service did not start: {self.log.read_text()[-3000:]}")
        self.port = int(json.loads(line.removeprefix("ready "))["port"])

    @property
    def address(self) -> Address:
        return addresses.parse(f"127.0.0.1:{self.port}")

    def kill(self) -> None:
        """kill -9."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(10)
            assert process.stdout is not None
            process.stdout.close()

    def token(self, *flags: str) -> str:
        """What `fogline ca token` prints."""
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            assert main(["ca", "token", "--dir", str(self.folder), "--at", str(self.address), *flags]) == 0
        return said.getvalue().strip()
