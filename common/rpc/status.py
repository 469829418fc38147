"""The one mapping between the error tree and gRPC status, in both directions.

A server handler raises an error of `common/errors.py`; the client's `translate` raises the same class with the same
message.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from fogline.common.errors import (
    CapacityError,
    ConfigError,
    FoglineError,
    FormatError,
    IdentityError,
    InputError,
    InternalError,
    ProtocolError,
    UnavailableError,
)

MAX_DETAIL = 1024  # characters of a message that cross the wire: trailers are limited to 8 KiB

_CODES: dict[type[FoglineError], grpc.StatusCode] = {
    ConfigError: grpc.StatusCode.FAILED_PRECONDITION,
    InputError: grpc.StatusCode.INVALID_ARGUMENT,
    ProtocolError: grpc.StatusCode.ABORTED,
    FormatError: grpc.StatusCode.DATA_LOSS,
    CapacityError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    IdentityError: grpc.StatusCode.UNAUTHENTICATED,
    UnavailableError: grpc.StatusCode.UNAVAILABLE,
    InternalError: grpc.StatusCode.INTERNAL,
}

# What gRPC itself, or another implementation, may answer with.
_ERRORS: dict[grpc.StatusCode, type[FoglineError]] = {code: error for error, code in _CODES.items()} | {
    grpc.StatusCode.PERMISSION_DENIED: IdentityError,
    grpc.StatusCode.UNIMPLEMENTED: ProtocolError,
    grpc.StatusCode.OUT_OF_RANGE: ProtocolError,
    grpc.StatusCode.DEADLINE_EXCEEDED: UnavailableError,
    grpc.StatusCode.CANCELLED: UnavailableError,
}


def to_status(error: FoglineError) -> tuple[grpc.StatusCode, str]:
    """The gRPC code and detail that a server answers `error` with."""
    for cls in type(error).__mro__:
        if cls in _CODES:
            return _CODES[cls], str(error)[:MAX_DETAIL]
    return grpc.StatusCode.INTERNAL, str(error)[:MAX_DETAIL]


def to_error(error: grpc.RpcError, peer: str = "") -> FoglineError:
    """The error of our tree for a failed call; `peer` names the other end in the message."""
    # Both the sync and the aio error carry these; the base class that they share does not declare them.
    code = error.code() if isinstance(error, (grpc.Call, grpc.aio.AioRpcError)) else grpc.StatusCode.UNKNOWN
    detail = (error.details() if isinstance(error, (grpc.Call, grpc.aio.AioRpcError)) else str(error)) or code.name
    cls = _ERRORS.get(code, InternalError)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in detail:
        cls = ProtocolError  # gRPC's own message limit, not a full disk
    if code is grpc.StatusCode.UNIMPLEMENTED:
        detail += "; the two ends run different versions of Fogline: update the older one"
    return cls(f"{peer}: {detail}" if peer else detail)


@contextmanager
def translate(peer: str = "") -> Iterator[None]:
    """Raise the error of our tree in place of a gRPC error; for sync and aio calls and for loops over their streams."""
    try:
        yield
    except grpc.RpcError as error:
        raise to_error(error, peer) from error
