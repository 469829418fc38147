"""Who gets which certificate, and who does not."""

from __future__ import annotations

import ipaddress
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from authority_parts import new_key
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fogline.common import pki
from fogline.common.authority import csr
from fogline.common.authority.registrar import GRACE, LIFETIME, MAX_VALID, Issued, Registrar
from fogline.common.errors import CapacityError, ConfigError, FoglineError, IdentityError, ProtocolError
from fogline.common.pki import Identity

NOW = datetime.now(timezone.utc).replace(microsecond=0)
HOUR = timedelta(hours=1)
GOOD = csr.make(new_key(), "cam", ("cam.local",))


def enrol(registrar: Registrar, secret: str, name: str, *hosts: str, at: datetime = NOW) -> Issued:
    return registrar.enrol(secret, csr.make(new_key(), name, hosts), at)


def test_a_token_makes_a_device_of_its_role_and_tenant(registrar: Registrar) -> None:
    secret = registrar.issue_token("fog", "gate", NOW, tenant="acme")
    key = new_key()
    made = registrar.enrol(secret, csr.make(key, "gate", ("gate.local", "10.0.0.7")), NOW)
    assert pki.check(made.certificate, made.authorities, pki.dump_key(key)) == Identity("gate", "fog", "acme")
    info = pki.inspect(made.certificate)
    assert info.hosts == ("gate", "gate.local", "10.0.0.7")
    assert info.not_after == NOW + LIFETIME


def test_a_token_is_used_up_but_not_by_the_same_request_again(registrar: Registrar) -> None:
    secret = registrar.issue_token("edge", "*", NOW)
    request = csr.make(new_key(), "cam-1")
    for _ in range(3):  # the answer was lost twice
        assert pki.identity(registrar.enrol(secret, request, NOW).certificate).name == "cam-1"
    for name in ("cam-1", "cam-2"):
        with pytest.raises(IdentityError, match="used by another device already"):
            enrol(registrar, secret, name)


def test_the_race_for_a_token_has_one_winner(registrar: Registrar, tmp_path: Path) -> None:
    secret = registrar.issue_token("edge", "*", NOW)
    other = Registrar(tmp_path / "ca")  # another process would be no different: SQLite is between them

    def attempt(number: int) -> bool:
        try:
            enrol((registrar, other)[number % 2], secret, f"cam-{number}")
        except IdentityError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(16))) == 1
    other.close()


def test_tokens_that_do_not_count(registrar: Registrar) -> None:
    secret = registrar.issue_token("edge", "cam-*", NOW, uses=5, expires=HOUR)
    enrol(registrar, secret, "cam-1", at=NOW + HOUR - timedelta(seconds=1))
    for given_secret, name, at, words in (
        ("made-up-secret-made-up-secret", "cam-2", NOW, "knows no such token"),
        (secret[:-1], "cam-2", NOW, "knows no such token"),
        ("", "cam-2", NOW, "knows no such token"),
        (secret, "cam-2", NOW + HOUR, "ended on"),
        (secret, "gate", NOW, "is for 'cam-\\*' and not for 'gate'"),
    ):
        with pytest.raises(IdentityError, match=words):
            enrol(registrar, given_secret, name, at=at)


def test_nobody_takes_the_name_of_another(registrar: Registrar) -> None:
    edges = registrar.issue_token("edge", "*", NOW, uses=9)
    enrol(registrar, edges, "cam-1")
    with pytest.raises(IdentityError, match=r"name of another device.*--name cam-1"):
        enrol(registrar, edges, "cam-1")
    for other in (
        registrar.issue_token("fog", "cam-1", NOW),
        registrar.issue_token("edge", "cam-1", NOW, tenant="acme"),
    ):
        with pytest.raises(IdentityError, match="enrolled as edge without a tenant"):
            enrol(registrar, other, "cam-1")


def test_a_replaced_device_is_enrolled_by_name_and_the_old_one_is_revoked(registrar: Registrar) -> None:
    old = enrol(registrar, registrar.issue_token("edge", "*", NOW), "cam-1")
    enrol(registrar, registrar.issue_token("edge", "cam-1", NOW), "cam-1")
    assert revoked(registrar) == {serial(old)}


def test_a_server_can_not_take_a_host_of_another(registrar: Registrar) -> None:
    fogs = registrar.issue_token("fog", "*", NOW, uses=9)
    enrol(registrar, fogs, "gate-1", "gate.local", "localhost", "127.0.0.1")
    enrol(registrar, fogs, "gate-2", "localhost", "127.0.0.1", "::1")  # everybody's own
    for name, host in (("gate-3", "gate.local"), ("gate-3", "gate-1"), ("gate.local", "x")):
        with pytest.raises(IdentityError, match="is that of gate-1"):
            enrol(registrar, fogs, name, host)
    with pytest.raises(ConfigError, match="kept for the certificate service"):
        enrol(registrar, fogs, "gate-3", pki.AUTHORITY_HOST)
    for name, hosts in (("gate-3", [x509.DNSName(pki.AUTHORITY_HOST)]), (pki.AUTHORITY_HOST, [x509.DNSName("x")])):
        forged = x509.CertificateSigningRequestBuilder()
        forged = forged.subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        forged = forged.add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        with pytest.raises(IdentityError, match="kept for the certificate service"):
            registrar.enrol(fogs, forged.sign(new_key(), hashes.SHA256()).public_bytes(Encoding.DER), NOW)
    narrow = registrar.issue_token("fog", "gate-4", NOW, hosts=("*.example", "10.0.0.4"))
    with pytest.raises(IdentityError, match=r"allows the hosts \*.example, 10.0.0.4 and not '10.0.0.5'"):
        enrol(registrar, narrow, "gate-4", "a.example", "10.0.0.5")
    enrol(registrar, narrow, "gate-4", "a.example", "10.0.0.4")
    with pytest.raises(IdentityError, match="nobody dials"):
        enrol(registrar, registrar.issue_token("edge", "*", NOW), "cam", "10.0.0.9")


def test_tokens_that_are_not_made(registrar: Registrar) -> None:
    for words, settings_ in (
        ("role", {"role": "authority"}),
        ("name or pattern", {"names": "Cam 1"}),
        ("tenant", {"tenant": "a/b"}),
        ("uses", {"uses": 0}),
        ("can't all be", {"names": "cam", "uses": 2}),
        ("good for", {"expires": timedelta(0)}),
        ("dialled by nobody", {"hosts": ("x",)}),
    ):
        with pytest.raises(ConfigError, match=words):
            registrar.issue_token(**{"role": "edge", "names": "*", "now": NOW, **settings_})  # type: ignore[arg-type]


def test_requests_for_more_than_a_name_and_hosts(registrar: Registrar) -> None:
    secret = registrar.issue_token("fog", "*", NOW, uses=99)
    key = new_key()
    name = [x509.NameAttribute(NameOID.COMMON_NAME, "gate")]
    unit = x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "cloud")
    ca = x509.BasicConstraints(ca=True, path_length=None)
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])

    def alternative(*names: x509.GeneralName) -> x509.SubjectAlternativeName:
        return x509.SubjectAlternativeName(names)

    network = x509.IPAddress(ipaddress.ip_network("10.0.0.0/8"))
    for subject, extension, signer, words in (
        ([*name, unit], None, key, "one common name"),
        ([], None, key, "one common name"),
        ([*name, *name], None, key, "one common name"),
        ([x509.NameAttribute(NameOID.COMMON_NAME, "Gate 1")], None, key, "not allowed"),
        ([x509.NameAttribute(NameOID.COMMON_NAME, "gate\0")], None, key, "not allowed"),
        (name, ca, key, "asks for the extension 2.5.29.19"),
        (name, usage, key, "asks for the extension 2.5.29.37"),
        (name, alternative(x509.UniformResourceIdentifier("fogline://cloud/cloud")), key, "names 'fogline://cloud"),
        (name, alternative(x509.RFC822Name("a@b")), key, "names 'a@b'"),
        (name, alternative(x509.DNSName("*.example")), key, "names '\\*.example'"),
        (name, alternative(x509.DNSName("a b")), key, "names 'a b'"),
        (name, alternative(network), key, "names '10.0.0.0/8'"),
        (name, alternative(*(x509.DNSName(f"h{i}") for i in range(33))), key, "names 33 hosts"),
        (name, None, ec.generate_private_key(ec.SECP384R1()), "not for an ECDSA key on P-256"),
        (name, None, rsa.generate_private_key(65537, 2048), "not for an ECDSA key on P-256"),
    ):
        builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(subject))
        if extension is not None:
            builder = builder.add_extension(extension, critical=False)
        der = builder.sign(signer, hashes.SHA256()).public_bytes(Encoding.DER)
        with pytest.raises(IdentityError, match=words):
            registrar.enrol(secret, der, NOW)
    with pytest.raises(ProtocolError, match="100000 bytes"):
        registrar.enrol(secret, bytes(100_000), NOW)
    good = csr.make(key, "gate")
    with pytest.raises(IdentityError, match="not signed with the key that it names"):
        registrar.enrol(secret, good[:-1] + bytes([good[-1] ^ 1]), NOW)
    assert pki.identity(registrar.enrol(secret, good, NOW).certificate) == Identity("gate", "fog")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_requests_are_refused_in_order(registrar: Registrar, data: st.DataObject) -> None:
    good = GOOD
    at = data.draw(st.integers(0, len(good) - 1))
    damaged = good[:at] + data.draw(st.binary(max_size=4)) + good[at + data.draw(st.integers(0, 4)) :]
    if damaged != good:
        with pytest.raises(FoglineError):
            registrar.enrol("no such secret", damaged, NOW)


def test_a_renewal_changes_nothing_but_the_key(registrar: Registrar) -> None:
    key, next_key = new_key(), new_key()
    secret = registrar.issue_token("fog", "gate", NOW, tenant="acme")
    first = registrar.enrol(secret, csr.make(key, "gate", ("10.0.0.7",)), NOW)
    request = csr.make(next_key, "gate")
    late = NOW + LIFETIME + GRACE - HOUR
    second = registrar.renew(first.certificate, request, csr.renewal_signature(key, request), late)
    assert pki.identity(second.certificate) == Identity("gate", "fog", "acme")
    assert pki.inspect(second.certificate).hosts == ("gate", "10.0.0.7")
    pki.check(second.certificate, second.authorities, pki.dump_key(next_key), now=late)


def test_renewals_that_are_refused(registrar: Registrar) -> None:
    key = new_key()
    first = registrar.enrol(registrar.issue_token("edge", "cam", NOW), csr.make(key, "cam"), NOW)
    foreign = pki.Authority.create().enrol("cam", "edge")
    foreign_key = pki.load_key(foreign.key_pem, "key")
    request, other, hosts = csr.make(new_key(), "cam"), csr.make(new_key(), "gate"), csr.make(new_key(), "cam", ("x",))
    after = NOW + LIFETIME + GRACE
    for certificate, wanted, signer, at, words in (
        (first.certificate, request, new_key(), NOW, "not signed with the key of the certificate"),
        (first.certificate, other, key, NOW, "changes nothing but the key"),
        (first.certificate, hosts, key, NOW, "changes nothing but the key"),
        (first.certificate, request, key, after, "more than 30 days ago"),
        (foreign.cert_pem, request, foreign_key, NOW, "not of this authority"),
        (first.authorities, request, key, NOW, "names no Fogline device"),
        (b"junk", request, key, NOW, "not a certificate"),
    ):
        with pytest.raises(IdentityError, match=words):
            registrar.renew(certificate, wanted, csr.renewal_signature(signer, wanted), at)
    registrar.revoke("cam", NOW)
    with pytest.raises(IdentityError, match="revoked"):
        registrar.renew(first.certificate, request, csr.renewal_signature(key, request), NOW)
    with pytest.raises(IdentityError, match="key of cam was revoked"):
        registrar.enrol(registrar.issue_token("edge", "cam", NOW), csr.make(key, "cam"), NOW)


def test_what_is_revoked_is_listed_until_it_would_have_ended(registrar: Registrar) -> None:
    made = enrol(registrar, registrar.issue_token("edge", "cam", NOW), "cam")
    enrol(registrar, registrar.issue_token("edge", "other", NOW), "other")
    (before,), bundle = registrar.lists(NOW)
    registrar.revoke("cam", NOW)
    (after,), _ = registrar.lists(NOW)
    assert revoked(registrar) == {serial(made)}
    assert revoked(registrar, NOW + LIFETIME + HOUR) == set()
    numbers = [
        x509.load_der_x509_crl(one).extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        for one in (before, after)
    ]
    assert numbers[0] < numbers[1]
    issuer = x509.load_pem_x509_certificate(bundle).public_key()
    assert x509.load_der_x509_crl(after).is_signature_valid(issuer)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no device 'nobody'"):
        registrar.revoke("nobody", NOW)


def test_a_device_enrolled_by_hand_is_known(registrar: Registrar, tmp_path: Path) -> None:
    by_hand = pki.Authority.load(tmp_path / "ca").enrol("cam", "edge")
    registrar.record(by_hand.cert_pem, NOW)
    with pytest.raises(IdentityError, match="name of another device"):
        enrol(registrar, registrar.issue_token("edge", "*", NOW), "cam")
    registrar.revoke("cam", NOW)
    assert revoked(registrar) == {x509.load_pem_x509_certificate(by_hand.cert_pem).serial_number}


def test_a_secret_is_nowhere_on_disk(registrar: Registrar, tmp_path: Path) -> None:
    secret = registrar.issue_token("edge", "*", NOW)
    enrol(registrar, secret, "cam")
    registrar.close()
    for path in (tmp_path / "ca").iterdir():
        assert secret.encode() not in path.read_bytes(), path


def test_a_device_that_renews_without_end_is_held_up(registrar: Registrar) -> None:
    key = new_key()
    held = registrar.enrol(registrar.issue_token("edge", "cam", NOW), csr.make(key, "cam"), NOW).certificate
    request = csr.make(key, "cam")
    signature = csr.renewal_signature(key, request)
    for _ in range(MAX_VALID - 1):
        registrar.renew(held, request, signature, NOW)
    with pytest.raises(CapacityError, match="read-only"):
        registrar.renew(held, request, signature, NOW)
    later = NOW + LIFETIME + HOUR
    assert pki.inspect(registrar.renew(held, request, signature, later).certificate).not_after == later + LIFETIME
    # What is forgotten of them is not whose the key is.
    much_later = later + LIFETIME + GRACE + HOUR
    any_name = registrar.issue_token("edge", "*", much_later)
    assert pki.identity(registrar.enrol(any_name, request, much_later).certificate).name == "cam"
    registrar.revoke("cam", much_later)
    assert len(revoked(registrar, much_later)) == 1


def serial(issued: Issued) -> int:
    return x509.load_pem_x509_certificate(issued.certificate).serial_number


def revoked(registrar: Registrar, at: datetime = NOW) -> set[int]:
    lists, _ = registrar.lists(at)
    return {entry.serial_number for der in lists for entry in x509.load_der_x509_crl(der)}


def test_the_authority_is_changed_with_an_overlap(registrar: Registrar, tmp_path: Path) -> None:
    overlap = timedelta(days=7)
    key = new_key()
    before = registrar.enrol(registrar.issue_token("edge", "cam", NOW), csr.make(key, "cam"), NOW)
    begins, ends = registrar.rotate(NOW, overlap)
    assert (begins, ends) == (NOW + overlap, NOW + overlap + LIFETIME + GRACE)
    with pytest.raises(ConfigError, match="is being changed"):
        registrar.rotate(NOW + overlap + HOUR, overlap)
    # At once both are trusted, and the old one still signs: whoever hears of it late is not shut out.
    request = csr.make(key, "cam")
    during = registrar.renew(before.certificate, request, csr.renewal_signature(key, request), NOW + HOUR)
    assert issuer(during.certificate) == 1
    old, new = registrar.known_to_all(NOW).certificate, pki.Authority.load(tmp_path / "ca", "ca-2").certificate
    assert pki.authorities(during.authorities) == [old, new]
    for late in (begins, begins + LIFETIME):
        after = registrar.renew(before.certificate, request, csr.renewal_signature(key, request), late)
        assert issuer(after.certificate) == 2
        assert pki.authorities(after.authorities) == [new, old]
        for bundle in (during.authorities, after.authorities):  # whoever has heard accepts both
            pki.check(after.certificate, bundle, now=late)
            pki.check(during.certificate, bundle, now=begins)
        lists, _ = registrar.lists(late)
        assert len(lists) == 2
    assert pki.authorities(registrar.bundle(ends)) == [new]
    assert registrar.known_to_all(ends).certificate == new
    with pytest.raises(IdentityError, match="more than 30 days ago"):
        registrar.renew(before.certificate, request, csr.renewal_signature(key, request), ends)
    by_hand, bundle = registrar.enrol_by_hand("gate", "fog", ("h",), begins)
    assert issuer(by_hand.cert_pem) == 2
    assert registrar.rotate(ends, overlap)[0] == ends + overlap


def test_an_authority_whose_key_is_known_ends_at_once(registrar: Registrar) -> None:
    key = new_key()
    before = registrar.enrol(registrar.issue_token("edge", "cam", NOW), csr.make(key, "cam"), NOW)
    registrar.rotate(NOW, timedelta(days=7), compromised=True)
    request = csr.make(key, "cam")
    with pytest.raises(IdentityError, match="not of this authority"):
        registrar.renew(before.certificate, request, csr.renewal_signature(key, request), NOW)
    again = registrar.enrol(registrar.issue_token("edge", "cam", NOW), csr.make(new_key(), "cam"), NOW)
    assert issuer(again.certificate) == 2
    assert len(pki.authorities(again.authorities)) == 1


def issuer(pem: bytes) -> int:
    """Which of the authorities signed it."""
    return 2 if "authority 2" in pki.inspect(pem).issuer else 1


def test_devices_are_listed(registrar: Registrar) -> None:
    enrol(registrar, registrar.issue_token("edge", "cam", NOW, tenant="acme"), "cam")
    enrol(registrar, registrar.issue_token("fog", "gate", NOW), "gate", "h")
    registrar.revoke("cam", NOW + HOUR)
    ends = NOW + LIFETIME
    assert registrar.devices() == [
        (Identity("cam", "edge", "acme"), ends, NOW + HOUR),
        (Identity("gate", "fog"), ends, None),
    ]
