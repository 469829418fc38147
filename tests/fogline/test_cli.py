"""The `fogline` command: help, suggestions, exit codes, certificates, and what it does not import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fogline import __version__
from fogline.cli import COMMANDS, main
from fogline.common import pki
from fogline.common.errors import ConfigError


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)
    assert main([]) == ConfigError.exit_code


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert f"fogline {name}" in capsys.readouterr().out


def test_a_mistyped_command_is_recognised(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["docter"])
    assert ended.value.code == ConfigError.exit_code
    assert "did you mean `doctor`?" in capsys.readouterr().err


def test_version_and_lightness() -> None:
    """The command itself starts without gRPC, torch and the other rooms."""
    code = (
        "import sys\nfrom fogline.cli import main\ntry:\n    main(['--version'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'grpc', 'numpy', 'prometheus_client'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"fogline {__version__}\n"), done.stderr


def test_certificates_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ca, out = str(tmp_path / "ca"), tmp_path / "gate"
    assert main(["ca", "init", "--dir", ca]) == 0
    assert main(["ca", "init", "--dir", ca]) == ConfigError.exit_code
    assert "exists and is not overwritten" in capsys.readouterr().err
    enrol = ["ca", "enrol", "gate-1", "--role", "fog", "--dir", ca, "--out", str(out)]
    assert main(enrol) == ConfigError.exit_code
    assert "--host" in capsys.readouterr().err
    assert main([*enrol, "--host", "gate.local", "--host", "10.0.0.5"]) == 0
    made = pki.inspect((out / "gate-1.pem").read_bytes())
    assert made.identity == pki.Identity("gate-1", "fog")
    assert made.hosts == ("gate-1", "gate.local", "10.0.0.5")
    assert main(["ca", "enrol", "Gate 1", "--dir", ca]) == ConfigError.exit_code
    assert main(["ca", "enrol", "x", "--dir", str(tmp_path / "nowhere")]) == ConfigError.exit_code
