"""Revocation lists: whose count, and that none goes back."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fogline.common import pki
from fogline.common.errors import IdentityError
from fogline.common.rpc.revocations import Revocations, read

NOW = datetime.now(timezone.utc)
OURS, THEIRS, NEXT = pki.Authority.create(), pki.Authority.create(), pki.Authority.create()


def signed(authority: pki.Authority, number: int, *serials: int) -> bytes:
    return authority.revocation_list([(serial, NOW) for serial in serials], number, NOW, timedelta(days=1))


def test_lists_of_our_authorities_count() -> None:
    revocations = Revocations()
    assert revocations.update([signed(OURS, 1)], [OURS.certificate])
    one = signed(OURS, 2, 7, 8)
    assert revocations.update([one], [OURS.certificate])
    assert not revocations.update([one], [OURS.certificate])
    assert 7 in revocations
    assert 9 not in revocations
    assert revocations.update([one, signed(NEXT, 2, 9)], [NEXT.certificate, OURS.certificate])
    assert len(revocations) == 3
    revocations.update([signed(NEXT, 3, 9)], [NEXT.certificate])  # the old authority was retired
    assert 7 not in revocations


def test_lists_that_do_not_count() -> None:
    revocations = Revocations()
    revocations.update([signed(OURS, 5, 7)], [OURS.certificate])
    forged = bytearray(signed(OURS, 6))
    forged[-1] ^= 1
    for lists, words in (
        ([signed(OURS, 4)], "came after 5"),
        ([signed(THEIRS, 9)], "none of our authorities"),
        ([bytes(forged)], "none of our authorities"),
        ([b"junk"], "not a revocation list"),
    ):
        with pytest.raises(IdentityError, match=words):
            revocations.update(lists, [OURS.certificate])
        assert 7 in revocations


@given(st.data())
def test_damage_is_refused(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(LIST) - 1))
    damaged = LIST[:at] + bytes([LIST[at] ^ data.draw(st.integers(1, 255))]) + LIST[at + 1 :]
    with pytest.raises(IdentityError):
        read(damaged, [OURS.certificate])


LIST = signed(OURS, 1, 7)
