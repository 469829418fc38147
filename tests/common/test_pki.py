"""Certificates: what they say, who accepts them, and how refusals read."""

from __future__ import annotations

import re
import socket
import ssl
import stat
import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from fogline.common import pki
from fogline.common.errors import ConfigError, IdentityError
from fogline.common.pki import Authority, Identity

DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create()


def test_a_device_is_who_its_certificate_says(authority: Authority) -> None:
    made = authority.enrol("gate-1", "fog", ("gate.local", "192.168.1.10", "::1"))
    assert pki.check(made.cert_pem, authority.certificate_pem, made.key_pem) == Identity("gate-1", "fog")
    info = pki.inspect(made.cert_pem)
    assert info.hosts == ("gate-1", "gate.local", "192.168.1.10", "::1")
    assert 364 * DAY < info.not_after - datetime.now(timezone.utc) < 366 * DAY
    certificate = x509.load_pem_x509_certificate(made.cert_pem)
    assert certificate.public_key().curve.name == "secp256r1"  # type: ignore[union-attr]


def test_files_are_private_and_never_overwritten(tmp_path: Path, authority: Authority) -> None:
    authority.save(tmp_path / "ca")
    again = Authority.load(tmp_path / "ca")
    assert again.certificate_pem == authority.certificate_pem
    assert stat.S_IMODE((tmp_path / "ca" / "ca.key").stat().st_mode) == 0o600
    with pytest.raises(ConfigError, match="exists and is not overwritten"):
        Authority.create().save(tmp_path / "ca")
    assert Authority.load(tmp_path / "ca").certificate_pem == authority.certificate_pem

    made = authority.enrol("cam", "edge")
    pki.save_enrolment(made, authority.certificate_pem, "cam", tmp_path / "cam")
    assert {path.name for path in (tmp_path / "cam").iterdir()} == {"ca.pem", "cam.pem", "cam.key"}
    assert stat.S_IMODE((tmp_path / "cam" / "cam.key").stat().st_mode) == 0o600
    with pytest.raises(ConfigError, match="exists and is not overwritten"):
        pki.save_enrolment(made, authority.certificate_pem, "cam", tmp_path / "cam")
    pki.save_enrolment(authority.enrol("cam2", "edge"), authority.certificate_pem, "cam2", tmp_path / "cam")
    with pytest.raises(ConfigError, match="another authority"):
        pki.save_enrolment(made, Authority.create().certificate_pem, "cam3", tmp_path / "cam")


def test_refusals_say_why_and_what_to_do(tmp_path: Path, authority: Authority) -> None:
    now = datetime.now(timezone.utc)
    ca = authority.certificate_pem
    good = authority.enrol("cam", "edge")
    expired = authority.enrol("cam", "edge", not_before=now - 9 * DAY, not_after=now - DAY)
    early = authority.enrol("cam", "edge", not_before=now + DAY)
    for certificate, key, words in (
        (expired.cert_pem, None, r"expired on .*this host's clock says .*set the clock.*enrol again"),
        (early.cert_pem, None, r"valid only from .*set this host's clock"),
        (Authority.create("Other").enrol("cam", "edge").cert_pem, None, r"CN=Other.*not of the authority.*enrol"),
        (good.cert_pem, expired.key_pem, r"key does not belong"),
        (b"junk", None, r"not a certificate in PEM"),
        (good.cert_pem, b"junk", r"not a private key in PEM"),
        (ca, None, r"names no Fogline device"),
    ):
        with pytest.raises(IdentityError, match=words):
            pki.check(certificate, ca, key)
    with pytest.raises(ConfigError, match="can't be read"):
        Authority.load(tmp_path)
    authority.save(tmp_path)
    (tmp_path / "ca.key").write_bytes(good.key_pem)
    with pytest.raises(IdentityError, match="is not the key of"):
        Authority.load(tmp_path)


@pytest.mark.parametrize("name", ["", "A", "a b", "../a", "-a", "a-", "a" * 64, "ä", "a\n"])
def test_bad_names_are_refused(authority: Authority, name: str) -> None:
    with pytest.raises(ConfigError, match="device name"):
        authority.enrol(name, "edge")


@pytest.mark.parametrize("host", ["", "http://x", "a b", "x:7400", "a/b"])
def test_bad_hosts_are_refused(authority: Authority, host: str) -> None:
    with pytest.raises(ConfigError, match="host"):
        authority.enrol("a", "fog", (host,))


@given(st.binary(max_size=200))
def test_garbage_is_no_certificate(data: bytes) -> None:
    with pytest.raises(IdentityError, match=re.escape("not a certificate")):
        pki.inspect(data)


def handshake(server: tuple[Path, Path], client: tuple[Path, Path], ca: Path, host: str) -> str | None:
    """Try real mTLS over a socket pair; return None or the client's or server's reason."""
    accepting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    accepting.load_cert_chain(*server)
    accepting.load_verify_locations(ca)
    accepting.verify_mode = ssl.CERT_REQUIRED
    dialling = ssl.create_default_context(cafile=str(ca))
    dialling.load_cert_chain(*client)
    left, right = socket.socketpair()
    reasons: list[str] = []

    def serve() -> None:
        try:
            with accepting.wrap_socket(left, server_side=True) as secure:
                secure.recv(1)
        except OSError as error:
            reasons.append(str(error))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with dialling.wrap_socket(right, server_hostname=host) as secure:
            secure.send(b"x")
    except OSError as error:
        reasons.append(str(error))
    finally:
        right.close()
        thread.join(5)
        left.close()
    return "; ".join(reasons) or None


def test_real_tls_accepts_and_refuses(tmp_path: Path, authority: Authority) -> None:
    def files(name: str, role: pki.Role, hosts: tuple[str, ...] = ()) -> tuple[Path, Path]:
        pki.save_enrolment(authority.enrol(name, role, hosts), authority.certificate_pem, name, tmp_path)
        return tmp_path / f"{name}.pem", tmp_path / f"{name}.key"

    fog, edge, posing = (
        files("fog", "fog", ("127.0.0.1",)),
        files("edge", "edge"),
        files("posing", "edge", ("127.0.0.1",)),
    )
    ca = tmp_path / "ca.pem"
    assert handshake(fog, edge, ca, "127.0.0.1") is None
    assert handshake(fog, edge, ca, "fog") is None
    assert "mismatch" in str(handshake(fog, edge, ca, "127.0.0.2"))
    assert "purpose" in str(handshake(posing, edge, ca, "127.0.0.1"))
