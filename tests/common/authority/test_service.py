"""A real certificate service: joining it, and what a hostile network may try."""

from __future__ import annotations

import hashlib
import ssl
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from authority_parts import Service, new_key

from fogline.common import pki
from fogline.common.authority import client, csr, token
from fogline.common.authority.join import join
from fogline.common.authority.token import JoinToken
from fogline.common.errors import ConfigError, FoglineError, IdentityError, ProtocolError, UnavailableError
from fogline.common.pki import Identity
from fogline.common.rpc.gen import authority_pb2 as pb


def fogline(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "fogline", *words], capture_output=True, text=True, check=False)


def test_joining_from_the_command_line(start_service: Callable[..., Service], tmp_path: Path) -> None:
    service, out = start_service("--lifetime", "24h"), tmp_path / "gate"
    text = service.token("--role", "fog", "--name", "gate", "--tenant", "acme")
    words = ("join", text, "--name", "gate", "--host", "gate.local", "--out", str(out))
    done = fogline(*words)
    assert done.returncode == 0, done.stderr
    assert f"authority: {service.address}" in done.stdout
    assert {path.name for path in out.iterdir()} == {"gate.pem", "gate.key", "ca.pem", "authority.json"}
    assert (out / "gate.key").stat().st_mode & 0o777 == 0o600
    cert, ca, key = ((out / name).read_bytes() for name in ("gate.pem", "ca.pem", "gate.key"))
    assert pki.check(cert, ca, key) == Identity("gate", "fog", "acme")
    again = fogline(*words)
    assert (again.returncode, (out / "gate.pem").read_bytes()) == (0, cert), again.stderr
    assert "joined already" in again.stdout
    other = fogline("join", text, "--name", "gate", "--out", str(tmp_path / "other"))
    assert other.returncode == IdentityError.exit_code
    secret = token.parse(text).secret
    assert secret not in service.log.read_text() + other.stderr + done.stdout


def test_a_device_that_lost_the_answer_asks_again(start_service: Callable[..., Service], tmp_path: Path) -> None:
    service = start_service()
    given = token.parse(service.token("--name", "cam"))
    join(given, "cam", (), tmp_path / "cam")
    (tmp_path / "cam" / "cam.pem").unlink()  # killed before the answer was written
    service.kill()  # and so was the service
    start_service()
    assert join(given, "cam", (), tmp_path / "cam").fresh
    with pytest.raises(IdentityError, match="used by another"):
        join(given, "cam", (), tmp_path / "thief")


def test_another_authority_gets_to_see_no_secret(start_service: Callable[..., Service], tmp_path: Path) -> None:
    service = start_service()
    good = token.parse(service.token())
    with pytest.raises(IdentityError, match=r"does not show the authority.*told nothing"):
        join(JoinToken(good.address, bytes(32), good.secret), "cam", (), tmp_path / "cam")
    assert "Enrol" not in service.log.read_text()
    foreign = pki.Authority.create().certificate_pem
    with (
        pytest.raises(IdentityError, match="no certificate service of our authority"),
        client.connected(service.address, foreign) as calls,
    ):
        calls.RevocationList(pb.RevocationListRequest(), timeout=10)


def test_a_server_of_the_deployment_can_not_pose_as_the_service(tmp_path: Path) -> None:
    """It shows the right authority, but its own certificate is not the service's."""
    authority = pki.Authority.create()
    made = authority.enrol("gate", "fog", ("127.0.0.1",))
    asked: list[bytes] = []

    def enrol(request: bytes, context: grpc.ServicerContext) -> bytes:
        asked.append(request)
        return b""

    server = grpc.server(ThreadPoolExecutor(1))
    handler = {"Enrol": grpc.unary_unary_rpc_method_handler(enrol)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("fogline.v1.AuthorityService", handler)])
    chain = made.cert_pem + authority.certificate_pem
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(made.key_pem, chain)]))
    server.start()
    sha256 = hashlib.sha256(ssl.PEM_cert_to_DER_cert(authority.certificate_pem.decode())).hexdigest()
    given = token.parse(f"fogline-join:127.0.0.1:{port}:{sha256}:{token.new_secret()}")
    with pytest.raises(IdentityError, match="no certificate service of our authority"):
        join(given, "cam", (), tmp_path / "cam")
    server.stop(None).wait()
    assert not asked


def test_nobody_there(tmp_path: Path, free_port: int) -> None:
    given = token.parse(f"fogline-join:127.0.0.1:{free_port}:{'0' * 64}:{token.new_secret()}")
    with pytest.raises(UnavailableError, match="is `fogline ca serve` running there"):
        join(given, "cam", (), tmp_path / "cam")


def test_many_requests_do_not_keep_others_out(start_service: Callable[..., Service], tmp_path: Path) -> None:
    service = start_service()
    given = token.parse(service.token("--name", "cam"))
    authority = client.pinned(service.address, given.sha256)

    def attempt(number: int) -> type[FoglineError]:
        request = (csr.make(new_key(), "cam"), bytes(20_000), bytes(100_000), b"")[number % 4]
        try:
            with client.connected(service.address, authority) as calls:
                calls.Enrol(pb.EnrolRequest(secret=token.new_secret(), csr=request), timeout=30)
        except FoglineError as error:
            return type(error)
        raise AssertionError("a made-up secret was taken")

    with ThreadPoolExecutor(8) as pool:
        attempts = [pool.submit(attempt, number) for number in range(80)]
        assert join(given, "cam", (), tmp_path / "cam").who.name == "cam"
        assert {one.result() for one in attempts} == {IdentityError, ProtocolError}
    assert "mistake of ours" not in service.log.read_text()


@pytest.mark.parametrize(
    "text", ["", "fogline-join", "fogline-join:h:1:ab:cd", "x:h:1:" + "0" * 64 + ":" + "s" * 43, "fogline-join:::::"]
)
def test_texts_that_are_no_token(text: str) -> None:
    with pytest.raises(ConfigError, match="copy all that"):
        token.parse(text)


def test_a_token_reads_back_and_hides_its_secret() -> None:
    for place in ("ca.example:7200", "[::1]:7200"):
        text = f"fogline-join:{place}:{'ab' * 32}:{'s' * 43}"
        assert str(token.parse(text)) == text
        assert "s" * 43 not in repr(token.parse(text))
    with pytest.raises(ConfigError, match="cut off") as caught:
        token.parse(f"fogline-join:h:1:{'ab' * 31}:{'s' * 43}")
    assert "s" * 43 not in str(caught.value)
