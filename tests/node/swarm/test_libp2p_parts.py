"""Only the parts of libp2p that a node uses are loaded; what is left out refuses to be used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from libp2p.crypto.pb import crypto_pb2
from libp2p.crypto.rsa import RSAPublicKey
from libp2p.crypto.serialization import deserialize_private_key, deserialize_public_key

from node.swarm.libp2p_parts import REFUSED, PartRefused

ROOT = Path(__file__).parents[3]


def in_fresh_process(code: str, *path: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(folder) for folder in (*path, ROOT))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def test_the_swarm_loads_nothing_of_the_parts_that_no_node_uses() -> None:
    loaded = set(in_fresh_process("import node.swarm.host, sys; print(*sys.modules)").split())
    assert "libp2p.security.noise.transport" in loaded
    unused = {"Crypto", "OpenSSL", "aioquic", "coincurve", "dns", "fastecdsa", "grpc", "miniupnpc", "prometheus_client"}
    assert not {name.partition(".")[0] for name in loaded} & unused
    assert not [name for name in loaded if name.startswith(("libp2p.host", "libp2p.kad_dht", "libp2p.rcmgr"))]


@pytest.mark.parametrize("kind", [crypto_pb2.KeyType.RSA, crypto_pb2.KeyType.Secp256k1])
def test_a_key_of_another_kind_is_refused(kind: crypto_pb2.KeyType) -> None:
    public = crypto_pb2.PublicKey(key_type=kind, data=b"\x02" * 33).SerializeToString()
    with pytest.raises(PartRefused, match="PublicKey is not among the parts"):
        deserialize_public_key(public)
    private = crypto_pb2.PrivateKey(key_type=kind, data=b"\x02" * 32).SerializeToString()
    with pytest.raises(PartRefused, match="PrivateKey is not among the parts"):
        deserialize_private_key(private)


def test_an_ecdsa_key_is_refused() -> None:
    public = crypto_pb2.PublicKey(key_type=crypto_pb2.KeyType.ECDSA, data=b"\x02" * 33).SerializeToString()
    with pytest.raises(Exception, match=r"(?i)deserializ|key_type"):
        deserialize_public_key(public)


def test_what_is_left_out_can_be_named_and_not_used() -> None:
    with pytest.raises(PartRefused):
        RSAPublicKey(1)
    with pytest.raises(PartRefused):
        RSAPublicKey.from_bytes(b"")
    assert isinstance(RSAPublicKey, type)


@pytest.mark.parametrize("module", sorted(REFUSED))
def test_nothing_but_refusing_classes_is_in_a_module_that_is_left_out(module: str) -> None:
    code = f"import node.swarm.libp2p_parts as p, importlib; p.use_parts(); m = importlib.import_module({module!r})\n"
    code += "print(*[n for n in vars(m) if not n.startswith('__')])"
    assert in_fresh_process(code).split() == sorted(REFUSED[module])


def test_the_libp2p_that_the_wheel_carries_goes_before_an_installed_one(tmp_path: Path) -> None:
    carried = tmp_path / "parallax_libp2p" / "libp2p"
    carried.mkdir(parents=True)
    (carried / "__init__.py").write_text("raise RuntimeError('its own start is not run')")
    (carried / "connection_types.py").write_text("CARRIED = True")
    code = "import node.swarm, libp2p.connection_types as c; print(c.CARRIED)"
    assert in_fresh_process(code, tmp_path).strip() == "True"


def test_another_process_that_imports_libp2p_is_not_concerned() -> None:
    assert (
        in_fresh_process("import sys, node.errors; print([f for f in sys.meta_path if 'Parts' in repr(f)])") == "[]\n"
    )
