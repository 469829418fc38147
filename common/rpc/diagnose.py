"""Why a connection did not come about.

gRPC says of any failed handshake that the peer is unavailable, and would retry for ever. This repeats the handshake
with the `ssl` module, which says what is wrong. With TLS 1.3 a server judges the client's certificate only after the
handshake.
"""

from __future__ import annotations

import socket
import ssl

from fogline.common.addresses import Address
from fogline.common.errors import FoglineError, IdentityError, UnavailableError
from fogline.common.rpc.tls import Material


def diagnose(address: Address, own: Material | None, timeout_s: float) -> FoglineError:
    """Try to reach `address` once: IdentityError when certificates are the reason, else UnavailableError."""
    try:
        if own is None:
            return _plain(_dial(address, timeout_s), address)
        # A gRPC server that refuses our certificate just hangs up. So does one that is killed, but not twice in a row.
        found = _encrypted(_dial(address, timeout_s), address, own) or _encrypted(
            _dial(address, timeout_s), address, own
        )
    except socket.gaierror as error:
        return UnavailableError(
            f"{address}: the name can't be resolved ({error.strerror}); check it, and this host's DNS", number=803
        )
    except TimeoutError:
        return UnavailableError(
            f"{address}: no answer; is the host on, does a firewall drop this port, do full-sized packets get through?",
            number=804,
        )
    except OSError as error:
        return UnavailableError(
            f"{address}: {error.strerror or error}; is it running, and is the address right?", number=801
        )
    return found or IdentityError(
        f"{address} hangs up when it sees our certificate {own.cert_path}: it trusts another authority, or takes the "
        "certificate for expired; compare tls.ca and the clocks of both ends, or enrol again",
        number=705,
    )


def _dial(address: Address, timeout_s: float) -> socket.socket:
    return socket.create_connection((address.host, address.port), timeout=timeout_s)


def _encrypted(sock: socket.socket, address: Address, own: Material) -> FoglineError | None:
    """None: the handshake went well, and then the peer hung up."""
    context = ssl.create_default_context(cadata=own.ca.decode("ascii", "replace"))
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(own.cert_path, own.key_path)
    try:
        with sock, context.wrap_socket(sock, server_hostname=address.host) as wrapped:
            return UnavailableError(f"{address}: it was starting, or too busy to answer") if _speaks(wrapped) else None
    except ssl.SSLCertVerificationError as error:
        return IdentityError(f"{address}: we refuse its certificate: {_verdict(error, address)}", number=706)
    except ssl.SSLError as error:
        return _alert(error, address)


def _speaks(wrapped: ssl.SSLSocket) -> bool:
    """Whether the peer says anything after the handshake; a gRPC server speaks first."""
    try:
        return bool(wrapped.recv(1))
    except ConnectionResetError:
        return False


def _verdict(error: ssl.SSLCertVerificationError, address: Address) -> str:
    message = error.verify_message.rstrip(".")
    low = message.lower()
    if "expired" in low:
        return "it has expired by this host's clock; set the clock if it is wrong, else enrol that host again"
    if "not yet valid" in low:
        return "it is not yet valid; check the clocks of both hosts"
    if "mismatch" in low or "not valid for" in low:
        return f"it is not for {address.host!r}; enrol that host with this name or address among its hosts"
    if "purpose" in low:
        return f"{message}; it was enrolled as an edge, which does not serve"
    return f"{message}; it comes from another authority than ours: compare tls.ca on both ends"


def _alert(error: ssl.SSLError, address: Address) -> FoglineError:
    reason = (error.reason or str(error)).upper()
    words = reason.lower().replace("_", " ")
    if any(sign in reason for sign in ("WRONG_VERSION", "HTTP_REQUEST", "PACKET_LENGTH", "RECORD_LAYER")):
        return IdentityError(
            f"{address} does not speak TLS; is it set to tls.insecure? Both ends must agree", number=707
        )
    if "EXPIRED" in reason:
        return IdentityError(
            f"{address} refuses our certificate as expired; enrol again, and check that host's clock", number=701
        )
    if "UNKNOWN_CA" in reason:
        return IdentityError(f"{address} trusts another authority than ours; compare tls.ca on both ends", number=702)
    if any(sign in reason for sign in ("CERT", "ACCESS_DENIED", "DECRYPT")):
        return IdentityError(f"{address} refuses our certificate ({words}); enrol again with its authority", number=705)
    return UnavailableError(f"{address}: the TLS handshake failed ({words})")


def _plain(sock: socket.socket, address: Address) -> FoglineError:
    """The peer did not take our plain HTTP/2: does it speak TLS?"""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with sock, context.wrap_socket(sock):
            pass
    except ssl.SSLError as error:
        if "ALERT" not in (error.reason or ""):
            return UnavailableError(f"{address}: it does not answer as a gRPC server")
    except OSError as error:
        return UnavailableError(f"{address}: {error.strerror or error}")
    return IdentityError(
        f"{address} speaks TLS and we are set to tls.insecure; set tls.ca, tls.cert and tls.key", number=707
    )
