"""Which parts of py-libp2p are loaded, and from where.

From where: our wheel carries libp2p as it was published (`.build/carry_libp2p.py` says why), in a folder that is on
nobody's path; in a checkout beside an environment that has libp2p 0.8.1 itself, that one is used.

Which parts: keys, peer ids, multistream-select, Noise and yamux. Its packages import their other rooms as they are
imported themselves: QUIC, TLS and its certificates, DNS, a DHT, UPnP, a resource manager. These are most of a second
of start and thirty packages that no node uses, so packages are entered without that (`HALLS`). What is left of them
are names in annotations, tables and abstract bases (`REFUSED`): they are there, and refuse to be used. Our keys are
Ed25519; a peer that shows an RSA or a secp256k1 key has no business here.
"""

from __future__ import annotations

import sys
from abc import ABCMeta
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

CARRIED_IN = "parallax_libp2p"

HALLS = (
    "libp2p",
    "libp2p.network",
    "libp2p.security",
    "libp2p.tools",
    "libp2p.tools.anyio_service",
    "libp2p.transport",
    "libp2p.transport.quic",
)
"""Packages whose own `__init__` is not run; modules in them are found as ever."""

REFUSED = {
    "libp2p.crypto.rsa": ("RSAPrivateKey", "RSAPublicKey"),
    "libp2p.crypto.secp256k1": ("Secp256k1PrivateKey", "Secp256k1PublicKey"),
    "libp2p.peer.peerinfo": ("PeerInfo",),
    "libp2p.tools.anyio_service.api": ("ServiceAPI",),
    "libp2p.transport.quic.stream": ("QUICStream",),
    "libp2p.utils.address_validation": (
        "expand_wildcard_address",
        "find_free_port",
        "get_available_interfaces",
        "get_optimal_binding_address",
    ),
    "multiaddr": ("Multiaddr",),
    "multibase": (),
}
"""Modules that are not loaded, with the classes that others import from them."""


class PartRefused(ValueError):
    """A peer wants, or our code uses, a part of libp2p that no node has."""


class _Refusing(ABCMeta):
    """Of a class that can be named and inherited from, and neither made nor asked for anything."""

    def __call__(cls, *args: Any, **kwargs: Any) -> NoReturn:
        raise PartRefused(f"{cls.__name__} is not among the parts of libp2p that a node uses")

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls.__call__  # what its methods are in tables; none of them does anything but refuse


class _RefusedModule(Loader):
    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def exec_module(self, module: ModuleType) -> None:
        for name in self._names:
            setattr(module, name, _Refusing(name, (), {"__module__": module.__name__}))


class _Parts(MetaPathFinder):
    """Goes before Python's own finders, and answers for libp2p alone."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in REFUSED:
            return ModuleSpec(fullname, _RefusedModule(REFUSED[fullname]))
        if fullname not in HALLS:
            return None
        found = PathFinder.find_spec(fullname, _carried() or path if fullname == "libp2p" else path)
        if found is None or found.submodule_search_locations is None:
            return None
        hall = ModuleSpec(fullname, None, is_package=True)
        hall.submodule_search_locations = list(found.submodule_search_locations)
        return hall


def _carried() -> list[str]:
    """The folder in which our wheel carries libp2p; empty where there is none."""
    spec = PathFinder.find_spec(CARRIED_IN)
    folders = spec.submodule_search_locations if spec is not None else None
    return [folder for folder in folders or () if (Path(folder) / "libp2p").is_dir()]


def use_parts() -> None:
    """From now on `import libp2p…` in this process means these parts. May be called again."""
    if not any(isinstance(finder, _Parts) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Parts())
