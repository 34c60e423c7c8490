"""Tokens: what goes in comes out, what is damaged is refused, and which swarm a home ends up in."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.errors import BadInvitation
from node.home import Home
from node.swarm.addresses import Address
from node.swarm.identity import identity_from_seed
from node.swarm.invitation import Invitation, read_invitation
from node.swarm.secret import SECRET_FILE, settle_secret

PEER = identity_from_seed(b"p" * 32).node_id
PLACES = (Address("ip4", "192.0.2.7", 4001, PEER), Address("ip6", "2001:db8::1", 4001, PEER))
INVITATION = Invitation(b"s" * 32, PLACES)


def test_a_token_is_one_word_and_holds_secret_and_addresses() -> None:
    token = INVITATION.token()
    assert token.isascii()
    assert token == "".join(token.split())
    assert read_invitation(token) == INVITATION
    assert read_invitation(f"  {token[:40]}\n{token[40:]}\n") == INVITATION


@given(st.integers(0, 10_000), st.sampled_from("abcXYZ059-_"))
def test_one_wrong_letter_is_found(position: int, letter: str) -> None:
    token = INVITATION.token()
    position %= len(token)
    damaged = token[:position] + letter + token[position + 1 :]
    if damaged != token:
        try:
            assert read_invitation(damaged) == INVITATION  # the spare bits of the last letter mean nothing
        except BadInvitation:
            return


@given(st.text(max_size=300) | st.text("plx1ABCabc012-_", max_size=300).map("plx1".__add__))
def test_anything_else_is_refused_with_a_sentence(token: str) -> None:
    with pytest.raises(BadInvitation, match="parallax invite"):
        read_invitation(token)


@pytest.mark.parametrize("cut", [1, 5, 50])
def test_a_token_that_lost_its_end_is_refused(cut: int) -> None:
    with pytest.raises(BadInvitation):
        read_invitation(INVITATION.token()[:-cut])


def test_the_secret_is_not_shown() -> None:
    assert repr(INVITATION.secret) not in repr(INVITATION)


def test_a_home_makes_its_own_secret_and_keeps_it(make_home: Callable[..., Home]) -> None:
    home = make_home()
    first = settle_secret(home, [])
    assert settle_secret(home, []) == first
    assert stat.S_IMODE(os.stat(home.data / SECRET_FILE).st_mode) == 0o600


def test_joining_adopts_the_secret_and_a_later_start_without_a_token_stays(make_home: Callable[..., Home]) -> None:
    home = make_home()
    own = settle_secret(home, [])
    joined = settle_secret(home, [INVITATION])
    assert joined.value == INVITATION.secret != own.value
    assert settle_secret(home, []) == joined


def test_changing_the_swarm_is_said_without_the_secret(
    make_home: Callable[..., Home], caplog: pytest.LogCaptureFixture
) -> None:
    home = make_home()
    own = settle_secret(home, [])
    with caplog.at_level(logging.DEBUG):
        settle_secret(home, [INVITATION])
    assert "leaves the swarm" in caplog.text
    for secret in (own.value, INVITATION.secret):
        assert secret.hex() not in caplog.text
        assert repr(secret) not in caplog.text
