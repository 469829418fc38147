"""The one error tree.

    FoglineError
    ├── ConfigError        a setting or command line is wrong; nothing was started
    ├── InputError         a user's image, annotation or folder is wrong; that item is refused, the rest goes on
    │   └── FormError      the form of an upload is wrong, not the image: send it as captured
    ├── ProtocolError      a peer broke the contract: bad header, order, checksum, size; the transfer is dropped
    ├── FormatError        a stored or received record is malformed or of an unknown codec or version
    ├── CapacityError      a disk, quota or limit is full; try again after making room
    ├── IdentityError      certificates: wrong authority, expired, wrong name, not allowed
    ├── UnavailableError   a peer can't be reached or is starting; retried with back-off
    └── InternalError      our own mistake

Every message names the thing, the value and the way out. `exit_code` is what a command ends with (docs/exit-codes.md);
the gRPC status of each class is mapped once, in `common/rpc/status.py`.
Causes that people meet have a number and a page.
"""

from __future__ import annotations


class FoglineError(Exception):
    """Root of every error that Fogline raises on purpose.

    `number`: of the page that explains this cause (docs/errors), its class's exit code first; the message ends with it,
    so it is in logs and crosses the wire. 0: the message says all.
    """

    exit_code = 1

    def __init__(self, message: str = "", *, number: int = 0) -> None:
        super().__init__(f"{message} [FL{number}]" if number else message)


class ConfigError(FoglineError):
    """A setting or command line is wrong; nothing was started."""

    exit_code = 2


class InputError(FoglineError):
    """A user's image, annotation or folder is wrong; that item is refused."""

    exit_code = 3


class FormError(InputError):
    """The form in which an image was sent is wrong, which says nothing of the image: send it as captured."""


class ProtocolError(FoglineError):
    """A peer broke the contract; the transfer is dropped."""

    exit_code = 4


class FormatError(FoglineError):
    """A record or blob is malformed, or of an unknown codec or version."""

    exit_code = 5


class CapacityError(FoglineError):
    """A disk, quota or limit is full; try again after making room."""

    exit_code = 6


class IdentityError(FoglineError):
    """A certificate is of the wrong authority, expired, of the wrong name, or not allowed to do this."""

    exit_code = 7


class UnavailableError(FoglineError):
    """A peer can't be reached or is still starting; safe to retry."""

    exit_code = 8


class InternalError(FoglineError):
    """An invariant of our own is broken; please report it."""

    exit_code = 9
