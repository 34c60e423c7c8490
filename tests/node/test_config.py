"""Settings: what can be written, and what is refused with a sentence that names it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.config import (
    Settings,
    announce_multiaddrs,
    check,
    listen_multiaddrs,
    parse_dtype,
    parse_host_port,
    read_config,
)
from node.errors import BadInvitation, ConfigError, UsageError
from node.swarm.invitation import read_invitation


def test_what_becomes_of_weights_is_read_and_checked(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('quantize = "int8"\n')
    assert read_config(file).quantize == "int8"
    file.write_text('quantize = "int3"\n')
    with pytest.raises(ConfigError, match=r"int3.*auto, none, int8, int4"):
        read_config(file)


def test_dtypes_are_read() -> None:
    assert [parse_dtype(text) for text in ("auto", "fp32", "BF16")] == [None, "float32", "bfloat16"]
    with pytest.raises(UsageError, match="--dtype 'int4'"):
        parse_dtype("int4")


def test_addresses_are_read() -> None:
    assert parse_host_port("[::1]:80", "--api") == ("::1", 80)
    assert listen_multiaddrs(("127.0.0.1:4000", "[::1]:4001", "/ip4/0.0.0.0/tcp/0")) == (
        "/ip4/127.0.0.1/tcp/4000",
        "/ip6/::1/tcp/4001",
        "/ip4/0.0.0.0/tcp/0",
    )


def test_a_name_to_listen_on_is_all_its_addresses_and_one_to_announce_stays_a_name() -> None:
    assert "/ip4/127.0.0.1/tcp/4001" in listen_multiaddrs(("localhost:4001",))
    assert announce_multiaddrs(
        ("myhome.example:4001", "203.0.113.5:1", "[2001:db8::1]:2", "/dns4/a.example/tcp/3")
    ) == (
        "/dns/myhome.example/tcp/4001",
        "/ip4/203.0.113.5/tcp/1",
        "/ip6/2001:db8::1/tcp/2",
        "/dns4/a.example/tcp/3",
    )
    for text in ("", "nowhere", "a b:1", "/dns4/a b/tcp/1", "/ip4/1.2.3.4/udp/5", "näme:1"):
        with pytest.raises(UsageError, match="--announce"):
            announce_multiaddrs((text,))


@pytest.mark.parametrize("text", ["", "localhost", ":80", "a:b", "1.2.3.4:99999", "x y:1", "/ip4/1.2.3.4/udp/5"])
def test_addresses_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--listen"):
        listen_multiaddrs((text,))


def test_a_config_file_sets_what_the_command_line_can(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('name = "attic"\nmemory = "4g"\nlayers = "3:9"\njoin = "tok"\ndiscover = false\ndtype = "bf16"\n')
    assert read_config(file) == Settings(
        name="attic", memory_bytes=4 * 1024**3, layers=(3, 9), join=("tok",), discover=False, dtype="bfloat16"
    )
    assert read_config(tmp_path / "absent.toml") == Settings()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("nmae = 1", "nmae"),
        ("name = 1", "name"),
        ('memory = "lots"', "memory"),
        ('layers = "9:3"', "layers"),
        ("discover = 1", "discover"),
        ("min_nodes = true", "min_nodes"),
        ('control = "pigeon"', "control"),
        ("listen = [1]", "listen"),
        ("name = ", "TOML"),
    ],
)
def test_a_bad_config_file_is_named_with_its_key(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=named) as caught:
        read_config(file)
    assert str(file) in str(caught.value)


@given(st.binary(max_size=300))
def test_no_bytes_in_a_config_file_do_anything_but_config_errors(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    file = tmp_path_factory.mktemp("config") / "config.toml"
    file.write_bytes(data)
    try:
        check(read_config(file))
    except UsageError:
        return


def test_names_are_for_people() -> None:
    assert check(Settings()).name
    for name in ("x" * 65, "a\x1b[31m", " "):
        with pytest.raises(UsageError, match="--name"):
            check(Settings(name=name))


def test_a_part_of_an_invitation_is_never_printed(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    for value in ('{secret = "plx1abc"}', '["plx1abc", 5]', "5"):
        file.write_text(f"join = {value}\n")
        with pytest.raises(ConfigError) as refused:
            read_config(file)
        assert "plx1abc" not in str(refused.value)
    with pytest.raises(BadInvitation) as bad:
        read_invitation("plx1abc-secret-secret")
    assert "secret" not in str(bad.value)


def test_a_config_that_holds_an_invitation_is_its_owners_alone(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    for text, mode in (('join = "plx1abc"', 0o600), ('name = "attic"', 0o644)):
        file.write_text(text)
        file.chmod(0o644)
        read_config(file)
        assert file.stat().st_mode & 0o777 == mode


def test_pages_and_names_that_may_call_are_settings(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('cors = ["http://NAS:3000"]\nallow_host = "Nas.local"\nlog_level = "debug"\n')
    read = read_config(file)
    assert (read.cors, read.allow_host, read.log_level) == (("http://nas:3000",), ("nas.local",), "debug")
    for text in ('cors = "nas"', 'allow_host = "a b"', 'log_level = "loud"'):
        key = text.partition(" ")[0]
        file.write_text(text)
        with pytest.raises(ConfigError, match=key):
            read_config(file)
