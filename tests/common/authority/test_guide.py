"""docs/certificates.md is followed word for word, but for the port."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import msgspec
import yaml

from fogline.common import pki
from fogline.common.config import TlsConfig
from fogline.common.rpc.revocations import Revocations

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "certificates.md"


def test_the_page_on_certificates(tmp_path: Path, free_port: int) -> None:
    text = GUIDE.read_text(encoding="utf-8").replace("0.0.0.0:7200", f"127.0.0.1:{free_port}")
    text = text.replace("127.0.0.1:7200", f"127.0.0.1:{free_port}")
    commands = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    assert len(commands) == 9
    run = f'fogline() {{ {sys.executable} -m fogline "$@"; }}\n'
    served: list[subprocess.Popen[str]] = []
    try:
        for command in commands:
            if command.endswith("&"):
                words = [sys.executable, "-m", *command.removesuffix("&").split()]
                served.append(subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, text=True))
                assert served[0].stdout is not None
                assert served[0].stdout.readline().startswith("ready ")
                continue
            done = subprocess.run(
                ["bash", "-c", run + command], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
            )
            assert done.returncode == 0, f"{command}: {done.stderr}"
    finally:
        for process in served:
            process.terminate()
            process.communicate(timeout=20)
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    tls = msgspec.convert(yaml.safe_load(block)["tls"], TlsConfig, dec_hook=lambda kind, value: tmp_path / value)
    ca, cert, key = (path.read_bytes() for path in tls.files())
    assert pki.check(cert, ca, key) == pki.Identity("gateway", "fog")
    from datetime import datetime, timezone

    from cryptography import x509

    from fogline.common.authority.registrar import opened

    with opened(tmp_path / "ca") as registrar:
        lists, bundle = registrar.lists(datetime.now(timezone.utc))
    revocations = Revocations()
    revocations.update(lists, pki.authorities(bundle))
    camera = x509.load_pem_x509_certificate((tmp_path / "cam-1" / "cam-1.pem").read_bytes())
    assert camera.serial_number in revocations
    assert len(lists) == 2  # of both keys of the authority
