"""A written host becomes an Endpoint as `ssh` itself would understand it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from liborch.errors import SpecError
from liborch.ssh import resolve_host
from liborch.ssh.resolve import Endpoint, Written, parse_name

HOME = os.path.expanduser("~")
needs_ssh = pytest.mark.skipif(shutil.which("ssh") is None, reason="needs the ssh binary")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gpu1", Written("gpu1")),
        ("me@gpu1", Written("gpu1", "me")),
        ("gpu1:2222", Written("gpu1", None, 2222)),
        ("me@gpu1:2222", Written("gpu1", "me", 2222)),
        ("me@corp@gpu1", Written("gpu1", "me@corp")),
        ("::1", Written("::1")),
        ("[::1]:2222", Written("::1", None, 2222)),
        ("me@[fe80::1]", Written("fe80::1", "me")),
        ("ssh://gpu1", Written("gpu1")),
        ("ssh://me@gpu1:2222/", Written("gpu1", "me", 2222)),
        ("ssh://a%40b@[::1]:22", Written("::1", "a@b", 22)),
    ],
)
def test_a_written_host_is_taken_apart(text: str, expected: Written) -> None:
    assert parse_name(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "-oProxyCommand=x", "me@-x", "-l@x", "@x", "a b", "x:0", "x:65536", "x:ssh", "x/y", "a\nb", "me@"],
)
def test_what_ssh_could_take_for_something_else_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match=r"host|port"):
        parse_name(text)


async def resolved(tmp_path: Path, config: str, host: str) -> Endpoint:
    file = tmp_path / "config"
    file.write_text(config)
    return await resolve_host(host, str(file))


@needs_ssh
async def test_include_and_match_count(tmp_path: Path) -> None:
    (tmp_path / "more").write_text("Host inc*\n  HostName 10.9.9.9\n  Port 2022\n")
    config = f"Include {tmp_path}/more\nMatch host 10.9.9.9 user bob\n  IdentityFile ~/bobs\nMatch exec true\n  ConnectTimeout 7\n"
    alice = await resolved(tmp_path, config, "alice@incl")
    assert (alice.host, alice.port, alice.user, alice.connect_timeout_s) == ("10.9.9.9", 2022, "alice", 7)
    assert f"{HOME}/bobs" not in alice.identity_files
    bob = await resolved(tmp_path, config, "bob@incl:99")
    assert bob.port == 99
    assert bob.identity_files == (f"{HOME}/bobs",)


@needs_ssh
async def test_jumps_proxies_keys_files_and_environment_are_taken_over(tmp_path: Path) -> None:
    config = """
Host x
  ProxyJump a@b:33,ssh://c
  UserKnownHostsFile "~/my known" ~/b
  GlobalKnownHostsFile none
  IdentityFile "~/with space/%r"
  IdentityFile ~/id2
  CertificateFile ~/id2-cert.pub
  IdentitiesOnly yes
  SetEnv A=1 "B=x y=z"
  SendEnv LANG FOO*
  ServerAliveInterval 1m
  ServerAliveCountMax 2
  HostKeyAlias thing
  AddressFamily inet
  User u
Host y
  ProxyCommand nc %h %p '%n' 100%%
  IdentityAgent "~/agent sock"
  HostName y.example
Host z
  IdentityAgent none
  StrictHostKeyChecking accept-new
  Ciphers aes256-ctr
"""
    x = await resolved(tmp_path, config, "x")
    home = HOME
    assert x.jumps == ("a@b:33", "c")
    assert x.user_known_hosts == (f"{home}/my known", f"{home}/b")
    assert x.global_known_hosts == ()
    assert x.identity_files == (f"{home}/with space/u", f"{home}/id2")
    assert x.certificate_files == (f"{home}/id2-cert.pub",)
    assert x.identities_only
    assert x.set_env == {"A": "1", "B": "x y=z"}
    assert x.send_env == ("LANG", "FOO*")
    assert (x.keepalive_interval_s, x.keepalive_count) == (60, 2)
    assert x.host_key_alias == "thing"
    assert x.family == socket.AF_INET
    y = await resolved(tmp_path, config, "y:44")
    assert y.proxy_command == "nc y.example 44 'y' 100%"
    assert y.identity_agent == f"{home}/agent sock"
    assert (y.keepalive_interval_s, y.keepalive_count, y.jumps) == (None, None, ())
    z = await resolved(tmp_path, config, "z")
    assert z.identity_agent == ""
    assert z.accepts_new_keys
    assert z.ciphers == ("aes256-ctr",)
    assert not y.accepts_new_keys


@needs_ssh
async def test_a_configuration_ssh_cannot_read_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"config.*line 2.*nonsense"):
        await resolved(tmp_path, "Host x\n  Nonsense yes\n", "x")


async def test_without_the_ssh_binary_the_other_parser_says_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = """
Host x
  HostName 10.1.2.3
  Port 2200
  User u
  ProxyJump a,b
  IdentityFile /keys/%r
  UserKnownHostsFile /known/a /known/b
  SetEnv A=1 B=2
  SendEnv LANG
  ServerAliveInterval 15
  ServerAliveCountMax 2
  ConnectTimeout 9
  HostKeyAlias thing
  IdentitiesOnly yes
Host y
  ProxyCommand nc %h %p
"""
    compared = (
        "host", "port", "user", "jumps", "identity_files", "user_known_hosts", "set_env", "send_env", "proxy_command",
        "keepalive_interval_s", "keepalive_count", "connect_timeout_s", "host_key_alias", "identities_only",
    )  # fmt: skip
    with_ssh = (
        [await resolved(tmp_path, config, name) for name in ("x", "bob@x:7")] if shutil.which("ssh") else []
    )
    y = await resolved(tmp_path, config, "y")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shutil.which("ssh") is None
    without = [await resolved(tmp_path, config, name) for name in ("x", "bob@x:7")]
    for one, other in zip(with_ssh, without, strict=False):
        assert {name: getattr(one, name) for name in compared} == {
            name: getattr(other, name) for name in compared
        }
    assert without[1].user == "bob"
    assert (await resolved(tmp_path, config, "y")).proxy_command == y.proxy_command == "nc y 22"


def test_importing_the_package_pulls_in_neither_asyncio_nor_asyncssh() -> None:
    code = (
        "import sys, liborch.ssh; print([m for m in ('asyncio', 'asyncssh', 'msgspec') if m in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


def test_importing_the_pool_does_not_import_asyncssh() -> None:
    code = "import sys; from liborch.ssh import Pool, Channel; print('asyncssh' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "False\n"
    )
