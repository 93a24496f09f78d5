"""What the pool says and does when a host, its network or its key misbehaves: clear errors, bounded time, no guesses."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from liborch.errors import AuthenticationRefused, HostKeyChanged, HostKeyUnknown, HostUnreachable
from liborch.ssh import Limits, Pool
from tests.lab.hosts import Lab

pytestmark = pytest.mark.lab

MakeLab = Callable[..., Lab]

#: Small times, so that a death is noticed within a second.
QUICK = Limits(
    connect_timeout_s=1.0, keepalive_interval_s=0.2, keepalive_count=2, backoff_base_s=0.05, backoff_cap_s=0.5
)


def pool_of(lab: Lab, limits: Limits = QUICK, *, accept_new: bool = False) -> Pool:
    return Pool(limits, rng=Random(5), config_file=str(lab.ssh_config), accept_new=accept_new)


async def until(true: Callable[[], bool], timeout_s: float = 10) -> None:
    async with asyncio.timeout(timeout_s):
        while not true():
            await asyncio.sleep(0.002)


async def test_a_changed_key_is_refused_with_file_and_line_and_no_login_is_tried(make_lab: MakeLab) -> None:
    lab = make_lab(2)
    host = lab.host("h2")
    host.change_host_key()
    before = host.sshd_log()
    line = next(
        i for i, text in enumerate(lab.known_hosts.read_text().splitlines(), 1) if host.address in text
    )
    async with pool_of(lab, Limits()) as pool:
        with pytest.raises(HostKeyChanged) as caught:
            await pool.run("h2", "touch ~/never")
        assert (await pool.run("h1", "echo fine")).stdout == b"fine\n"
    assert f"{lab.known_hosts}:{line}" in str(caught.value)
    assert caught.value.fingerprint != caught.value.recorded
    shown = host.run(f"ssh-keygen -l -f {host.etc}/host_key.pub").stdout.split()[1]
    assert shown == caught.value.fingerprint
    assert "for root" not in host.sshd_log()[len(before) :]
    assert not (host.home / "never").exists()


async def test_an_unknown_key_is_refused_and_recorded_only_when_asked(
    make_lab: MakeLab, tmp_path: Path
) -> None:
    lab = make_lab(1)
    known = tmp_path / "known_hosts"
    lab.add_alias("new", HostName=lab.host("h1").address, UserKnownHostsFile=known)
    async with pool_of(lab) as pool:
        with pytest.raises(HostKeyUnknown, match=r"known_hosts.*--accept-new"):
            await pool.connect("new")
    assert not known.exists()
    async with pool_of(lab, accept_new=True) as pool:
        assert (await pool.run("new", "hostname")).stdout == b"h1\n"
    assert known.read_text() == f"{lab.host('h1').address} {lab.host('h1').public_key}\n"
    async with pool_of(lab) as pool:
        assert (await pool.run("new", "hostname")).stdout == b"h1\n"
    lab.host("h1").change_host_key()
    async with pool_of(lab, accept_new=True) as pool:
        with pytest.raises(HostKeyChanged):
            await pool.connect("new")


async def test_a_refused_login_says_so_and_is_not_tried_again_at_once(
    make_lab: MakeLab, tmp_path: Path
) -> None:
    lab = make_lab(1)
    lab.add_alias("wrong", HostName=lab.host("h1").address, IdentityFile=tmp_path / "absent")
    lab.key.rename(tmp_path / "moved")
    async with pool_of(lab) as pool:
        for _ in range(3):
            with pytest.raises(AuthenticationRefused, match=r"login of root.*ssh wrong"):
                await pool.run("wrong", "true")
        assert pool.counters("wrong").handshakes == 1


async def test_a_locked_key_is_named(make_lab: MakeLab, tmp_path: Path) -> None:
    lab = make_lab(1)
    lab.host("h1").run(f"ssh-keygen -q -t ed25519 -N secret -f {lab.folder}/locked")
    lab.key.rename(tmp_path / "moved")
    lab.add_alias("locked", HostName=lab.host("h1").address, IdentityFile=lab.folder / "locked")
    async with pool_of(lab) as pool:
        with pytest.raises(AuthenticationRefused, match=r"locked needs its passphrase"):
            await pool.connect("locked")


async def test_a_name_that_does_not_resolve_is_named(make_lab: MakeLab) -> None:
    lab = make_lab(1)
    async with pool_of(lab) as pool:
        with pytest.raises(HostUnreachable, match=r"no-such-host\.invalid.*does not resolve"):
            await pool.connect("no-such-host.invalid")


async def test_a_port_without_sshd_refuses(make_lab: MakeLab) -> None:
    lab = make_lab(1)
    async with pool_of(lab) as pool:
        with pytest.raises(HostUnreachable, match=r"refused the connection"):
            await pool.connect("h1:2222")


async def test_a_host_that_drops_packets_gives_no_answer_in_bounded_time(make_lab: MakeLab) -> None:
    lab = make_lab(1)
    lab.host("h1").drop_packets()
    start = time.monotonic()
    async with pool_of(lab) as pool:
        with pytest.raises(HostUnreachable, match=r"gave no answer in 1 s"):
            await pool.connect("h1")
    assert time.monotonic() - start < 5


async def test_a_host_that_accepts_and_says_nothing_is_given_up(make_lab: MakeLab) -> None:
    lab = make_lab(1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        lab.add_alias("silent", HostName="127.0.0.1", Port=silent.getsockname()[1])
        async with pool_of(lab) as pool:
            with pytest.raises(HostUnreachable, match=r"accepted the connection but did not finish.*1 s"):
                await pool.connect("silent")


async def test_what_is_no_ssh_server_is_told(make_lab: MakeLab) -> None:
    async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 2000)
        writer.close()

    lab = make_lab(1)
    server = await asyncio.start_server(http, "127.0.0.1", 0)
    lab.add_alias("web", HostName="127.0.0.1", Port=server.sockets[0].getsockname()[1])
    async with server, pool_of(lab) as pool:
        with pytest.raises(HostUnreachable):
            await pool.connect("web")


async def test_a_server_that_always_hangs_up_is_given_up_after_some_tries(make_lab: MakeLab) -> None:
    lab = make_lab(1)
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    lab.add_alias("rude", HostName="127.0.0.1", Port=server.sockets[0].getsockname()[1])
    async with server, pool_of(lab) as pool:
        with pytest.raises(
            HostUnreachable, match=r"closed the connection during the SSH handshake, \d times"
        ):
            await pool.connect("rude")
        assert pool.counters("rude").handshakes <= QUICK.handshake_tries


async def test_a_dead_jump_host_is_named_as_such(make_lab: MakeLab) -> None:
    lab = make_lab(2)
    lab.host("h1").drop_packets()
    async with pool_of(lab) as pool:
        with pytest.raises(HostUnreachable, match=r"h1 .*gave no answer"):
            await pool.connect("behind2")


async def test_a_host_the_jump_host_cannot_reach_is_told(make_lab: MakeLab) -> None:
    lab = make_lab(2)
    lab.host("h2").stop_sshd()
    async with pool_of(lab) as pool:
        with pytest.raises(HostUnreachable, match=r"behind2 .*from the jump host.*refused"):
            await pool.connect("behind2")


async def test_a_failing_proxy_command_is_quoted(make_lab: MakeLab) -> None:
    lab = make_lab(1)
    lab.add_alias("broken", HostName="x", ProxyCommand="echo my gateway is down >&2; exit 1")
    async with pool_of(lab) as pool:
        with pytest.raises(HostUnreachable, match=r"my gateway is down"):
            await pool.connect("broken")


async def test_silence_is_noticed_and_the_outcome_is_unknown_not_failed(make_lab: MakeLab) -> None:
    lab = make_lab(1)
    async with pool_of(lab) as pool:
        link = await pool.connect("h1")
        channel = await pool.open_channel("h1", "cat")
        running = asyncio.create_task(pool.run("h1", "echo begun; sleep 60"))
        await until(lambda: pool.counters("h1").channels == 2)
        start = time.monotonic()
        lab.host("h1").drop_packets()
        result = await running
        noticed_s = time.monotonic() - start
        assert result.exit_status is None
        assert "connection was lost" in result.unknown
        assert await channel.read() == b""
        assert await channel.wait() is None
        assert not channel.is_open
        with pytest.raises(BrokenPipeError):
            await channel.write(b"x")
        assert "keepalive" in await link.wait_closed()
        # 0.2 s x (2 + 1), and room for a busy machine.
        assert noticed_s < 3
        lab.host("h1").restore()
        assert (await pool.run("h1", "echo back")).stdout == b"back\n"
        assert pool.counters("h1").channels == 0


async def test_a_short_cut_goes_unnoticed(make_lab: MakeLab) -> None:
    lab = make_lab(1)
    async with pool_of(lab, Limits()) as pool:
        channel = await pool.open_channel("h1", "cat")
        lab.host("h1").cut()
        await channel.write(b"across the gap")
        await asyncio.sleep(1.0)
        lab.host("h1").restore()
        assert await asyncio.wait_for(channel.read(), 10) == b"across the gap"
        assert pool.counters("h1").connections_total == 1


async def test_a_reset_ends_channels_as_unknown_and_the_next_command_reconnects(make_lab: MakeLab) -> None:
    lab = make_lab(1)
    async with pool_of(lab) as pool:
        channel = await pool.open_channel("h1", "cat")
        lab.host("h1").reset_connections()
        assert await channel.wait() is None
        assert (await pool.run("h1", "echo again")).stdout == b"again\n"
        assert pool.counters("h1").connections_total == 2


async def test_a_restart_of_the_listener_disturbs_nobody_and_new_hosts_get_in_afterwards(
    make_lab: MakeLab,
) -> None:
    lab = make_lab(1)
    host = lab.host("h1")
    async with pool_of(lab) as pool:
        channel = await pool.open_channel("h1", "cat")
        host.stop_sshd()
        assert (await pool.run("h1", "echo over the old link")).exit_status == 0
        with pytest.raises(HostUnreachable):
            await pool.connect("sue@h1")
        host.start_sshd()
        assert (await pool.run("sue@h1", "whoami")).stdout == b"sue\n"
        await channel.write(b"still")
        assert await channel.read() == b"still"


async def test_commands_asked_for_while_the_link_dies_run_once_or_are_unknown(make_lab: MakeLab) -> None:
    lab = make_lab(1)
    host = lab.host("h1")
    async with pool_of(lab) as pool:
        tasks = [asyncio.create_task(pool.run("h1", f"echo {i} >> ~/ran")) for i in range(60)]
        for _ in range(3):
            done = pool.counters("h1").channels_total
            await until(lambda done=done: pool.counters("h1").channels_total >= done + 8)  # type: ignore[misc]
            host.reset_connections()
        results = await asyncio.gather(*tasks)
    ran = host.run("cat ~/ran").stdout.split()
    assert len(ran) == len(set(ran)), "none ran twice"
    for i, result in enumerate(results):
        assert result.exit_status == 0 or result.unknown
        assert result.exit_status != 0 or str(i) in ran


async def test_after_failures_the_next_attempt_waits_for_its_back_off(make_lab: MakeLab) -> None:
    lab = make_lab(1)
    lines: list[str] = []
    pool = Pool(QUICK, rng=Random(5), config_file=str(lab.ssh_config), debug=lines.append)
    async with pool:
        for _ in range(4):
            with pytest.raises(HostUnreachable):
                await pool.connect("h1:2222")
        counters = pool.counters("h1:2222")
    assert (counters.failures, counters.handshakes) == (4, 4)
    assert "refused" in counters.last_error
    assert sum("next attempt in" in line for line in lines) == 3


async def test_a_link_that_died_while_this_machine_was_asleep_is_noticed_when_it_wakes(
    make_lab: MakeLab,
) -> None:
    lab = make_lab(2)
    said: list[str] = []
    # Left to the keepalive alone, nobody would notice within an hour.
    limits = Limits(keepalive_interval_s=1800.0, keepalive_count=1, away_s=2.0)
    async with Pool(limits, rng=Random(5), config_file=str(lab.ssh_config), debug=said.append) as pool:
        dead, alive = await pool.connect("h1"), await pool.connect("h2")
        lab.host("h1").drop_packets()
        await asyncio.sleep(0)
        time.sleep(5.0)  # noqa: ASYNC251 - the loop stands still, as on a machine that sleeps
        await until(lambda: not dead.is_open, 30)
        assert any("was away for" in line for line in said)
        lab.host("h1").restore()
        assert (await pool.run("h1", "hostname")).stdout == b"h1\n"
        assert alive.is_open
