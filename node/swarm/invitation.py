"""An invitation: one word that holds a swarm's secret and where its members listen.

It is as good as membership, so it is shown only to who asks for it and never logged.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass, field
from typing import Annotated

from msgspec import Meta, Struct

from node.errors import BadInvitation, BadWireData
from node.swarm.addresses import Address
from node.wire.codec import decode, encode

PREFIX = "plx1"
CHECKSUM_BYTES = 4
"""Finds a lost or swapped letter; it is no protection, the secret is."""
LIMIT_BYTES = 8192
ADDRESS_LIMIT = 32


Places = Annotated[tuple[Annotated[str, Meta(max_length=320)], ...], Meta(max_length=ADDRESS_LIMIT)]


class _Content(Struct, frozen=True, array_like=True):
    secret: Annotated[bytes, Meta(min_length=32, max_length=32)]
    places: Annotated[dict[Annotated[str, Meta(max_length=64)], Places], Meta(max_length=ADDRESS_LIMIT)]
    """Peer id to its addresses: an id is longer than an address, and the token is copied by people."""


@dataclass(frozen=True, slots=True)
class Invitation:
    """What a token holds."""

    secret: bytes = field(repr=False)
    addresses: tuple[Address, ...]
    """Each with the peer id that answers there."""

    def token(self) -> str:
        """The word to hand over."""
        places: dict[str, tuple[str, ...]] = {}
        for address in self.addresses[:ADDRESS_LIMIT]:
            assert address.peer is not None
            places[address.peer] = (*places.get(address.peer, ()), str(address.at(None)))
        content = encode(_Content(self.secret, places))
        return PREFIX + base64.urlsafe_b64encode(content + _checksum(content)).decode().rstrip("=")


def read_invitation(token: str) -> Invitation:
    """What `token` holds. White space around it and line breaks from copying do no harm.

    Raises:
        BadInvitation: it is none, or it was damaged on its way.
    """
    word = "".join(token.split())
    if not word.startswith(PREFIX):
        raise BadInvitation(f"it does not begin with {PREFIX}")
    if len(word) > LIMIT_BYTES:
        raise BadInvitation("it is too long")
    body = word.removeprefix(PREFIX)
    try:
        data = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadInvitation("it holds a character that none has") from error
    content, checksum = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    if checksum != _checksum(content):
        raise BadInvitation("a part of it is missing or changed")
    try:
        fields = decode(content, _Content, where="invitation", limit_bytes=LIMIT_BYTES)
        addresses = tuple(
            Address.parse(f"{place}/p2p/{peer}") for peer, places in fields.places.items() for place in places
        )
    except (BadWireData, ValueError) as error:
        raise BadInvitation("its content is of another version") from error
    return Invitation(fields.secret, addresses)


def _checksum(content: bytes) -> bytes:
    return hashlib.sha256(b"parallax invitation\0" + content).digest()[:CHECKSUM_BYTES]
