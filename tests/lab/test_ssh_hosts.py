"""Ways to reach a host and what it is like there: jumps, proxies, agents, certificates, login shells, bytes."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from liborch.errors import AuthenticationRefused, HostUnreachable
from liborch.ssh import Limits, Pool
from tests.lab.hosts import Lab, keygen
from tests.lab.machine import wait_until

# ruff: noqa: ASYNC220, ASYNC221 - ssh-keygen and ssh-agent answer in milliseconds

pytestmark = pytest.mark.lab

MakeLab = Callable[..., Lab]


def pool_of(lab: Lab, **options: object) -> Pool:
    return Pool(config_file=str(lab.ssh_config), **options)  # type: ignore[arg-type]


def sessions(lab: Lab, host: str) -> int:
    return sum(process.argv[0] == "sshd: root" for process in lab.host(host).processes())


async def test_two_jump_hosts_in_a_row(lab: Lab) -> None:
    async with pool_of(lab) as pool:
        assert (await pool.run("behind3", "hostname")).stdout == b"h3\n"
        assert (await pool.run("behind2", "hostname")).stdout == b"h2\n"
        # The way to h3 leads over the same connections.
        assert [pool.counters(name).connections_total for name in ("h1", "behind2", "behind3")] == [1, 1, 1]


async def test_a_chain_of_jumps_written_in_one_line(lab: Lab) -> None:
    inner2, inner3 = lab.host("h2").inner[0], lab.host("h3").inner[0]
    lab.add_alias("chain", HostName=inner3, ProxyJump=f"h1,root@{inner2}:22")
    async with pool_of(lab) as pool:
        assert (await pool.run("chain", "hostname; echo $SSH_CLIENT")).stdout.split()[0] == b"h3"


async def test_a_proxy_command_and_its_end_with_the_pool(lab: Lab) -> None:
    address = lab.host("h2").address
    lab.add_alias("proxied", HostName=address, ProxyCommand=f"/usr/bin/ssh -F {lab.ssh_config} -W %h:%p h1")
    async with pool_of(lab) as pool:
        assert (await pool.run("proxied", "hostname")).stdout == b"h2\n"
        carried = await pool.run("proxied", "head -c 5000000 /dev/zero; cat", input=b"y" * 3_000_000)
        assert len(carried.stdout) == 8_000_000
        assert sessions(lab, "h1") == 1
    wait_until("the proxy command's end", lambda: sessions(lab, "h1") == 0)


async def test_include_and_match_lead_to_the_right_host(lab: Lab, tmp_path: Path) -> None:
    h2, h3 = lab.host("h2").address, lab.host("h3").address
    (tmp_path / "included").write_text(f"Host box\n  HostName {h2}\n")
    (tmp_path / "config").write_text(
        f"Match originalhost box user kim\n  HostName {h3}\n"
        f"Match all\nInclude {tmp_path}/included\nInclude {lab.ssh_config}\n"
    )
    async with Pool(config_file=str(tmp_path / "config")) as pool:
        assert (await pool.run("box", "hostname; whoami")).stdout == b"h2\nroot\n"
        assert (await pool.run("kim@box", "hostname; whoami")).stdout == b"h3\nkim\n"


async def test_the_key_agent_is_used_and_identities_only_is_respected(
    make_lab: MakeLab, tmp_path: Path
) -> None:
    lab = make_lab(1)
    moved = tmp_path / "only_in_agent"
    lab.key.rename(moved)
    socket_path = str(tmp_path / "agent")
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", socket_path], stdout=subprocess.DEVNULL)
    try:
        wait_until("the key agent", Path(socket_path).exists)
        subprocess.run(
            ["ssh-add", "-q", str(moved)], env={"SSH_AUTH_SOCK": socket_path, "PATH": "/usr/bin"}, check=True
        )
        address = lab.host("h1").address
        lab.add_alias("agent", HostName=address, IdentityAgent=socket_path, IdentitiesOnly="no")
        lab.add_alias("only", HostName=address, IdentityAgent=socket_path)
        async with pool_of(lab) as pool:
            assert (await pool.run("agent", "hostname")).stdout == b"h1\n"
            # Its public half is there, so the configured identity may come from the agent.
            assert (await pool.run("only", "hostname")).stdout == b"h1\n"
        lab.key.with_suffix(".pub").unlink()
        async with pool_of(lab) as pool:
            with pytest.raises(AuthenticationRefused):
                await pool.connect("only")
    finally:
        agent.terminate()
        agent.wait()


async def test_certificates_of_hosts_and_people(make_lab: MakeLab, tmp_path: Path) -> None:
    lab = make_lab(1)
    host = lab.host("h1")
    authority, mine = tmp_path / "authority", tmp_path / "mine"
    keygen(authority)
    keygen(mine)
    public = (tmp_path / "authority.pub").read_text().strip()
    sign = ["ssh-keygen", "-q", "-s", str(authority), "-I", "lab"]
    subprocess.run([*sign, "-h", "-n", host.address, str(host.etc / "host_key.pub")], check=True)
    subprocess.run([*sign, "-n", "root", str(tmp_path / "mine.pub")], check=True)
    (host.etc / "authority.pub").write_text(public + "\n")
    host.stop_sshd()
    host.start_sshd(
        TrustedUserCAKeys=host.etc / "authority.pub", HostCertificate=host.etc / "host_key-cert.pub"
    )
    known = tmp_path / "known_hosts"
    known.write_text(f"@cert-authority 10.213.* {public}\n")
    lab.key.rename(tmp_path / "moved")
    lab.add_alias(
        "signed",
        HostName=host.address,
        UserKnownHostsFile=known,
        IdentityFile=mine,
        CertificateFile=tmp_path / "mine-cert.pub",
    )
    async with pool_of(lab) as pool:
        assert (await pool.run("signed", "hostname")).stdout == b"h1\n"


@pytest.mark.parametrize("account", ["sue", "bob", "kim", "finn"])
async def test_every_login_shell_runs_a_command_and_gives_its_status(lab: Lab, account: str) -> None:
    async with pool_of(lab) as pool:
        result = await pool.run(
            f"{account}@h1", "/bin/sh -c 'whoami; cat; echo oops >&2; exit 7'", input=b"\xff\x00\n"
        )
        assert (result.exit_status, result.stdout, result.stderr) == (
            7,
            account.encode() + b"\n\xff\x00\n",
            b"oops\n",
        )


async def test_codes_signals_and_bytes_come_back_exactly(lab: Lab) -> None:
    async with pool_of(lab) as pool:
        codes = [0, 1, 2, 126, 127, 128, 130, 137, 143, 255]
        results = await asyncio.gather(*(pool.run("h1", f"exit {code}") for code in codes))
        assert [result.exit_status for result in results] == codes
        killed = await pool.run("h1", "kill -9 $$")
        assert (killed.exit_status, killed.signal, killed.unknown) == (None, "KILL", "")
        data = bytes(range(256)) * 40_000
        echoed = await pool.run("h1", "cat; sha256sum < /dev/null >&2", input=data)
        assert echoed.stdout == data
        assert echoed.stderr.startswith(hashlib.sha256(b"").hexdigest().encode())
        # A command that does not read its input ends all the same.
        assert (await pool.run("h1", "exec true", input=b"z" * 5_000_000)).exit_status == 0


async def test_output_beyond_the_limit_is_cut_and_said_to_be(lab: Lab) -> None:
    async with pool_of(lab, limits=Limits(run_output_bytes=1000)) as pool:
        result = await pool.run("h1", "head -c 300000 /dev/zero; head -c 300000 /dev/zero >&2; exit 4")
        assert (result.exit_status, len(result.stdout), len(result.stderr), result.truncated) == (
            4,
            1000,
            1000,
            True,
        )


async def test_a_command_that_takes_too_long_is_unknown_and_its_room_is_free(lab: Lab) -> None:
    async with pool_of(lab, limits=Limits(channels=1, connections=1)) as pool:
        result = await pool.run("h1", "echo x; sleep 30", timeout_s=0.3)
        assert (result.exit_status, result.stdout, result.unknown) == (None, b"x\n", "no end within 0.3 s")
        assert (await pool.run("h1", "echo next", timeout_s=10)).stdout == b"next\n"
    for pid in lab.host("h1").pids_matching("sleep 30"):
        lab.host("h1").kill(pid)


async def test_a_channel_carries_bytes_both_ways_with_bounded_memory(lab: Lab) -> None:
    async with pool_of(lab) as pool:
        channel = await pool.open_channel("h1", "cat; echo last words >&2; exit 5")
        await channel.write(b"hello")
        assert await channel.read() == b"hello"
        # Nobody reads: the writer is held back once both sides' buffers are full.
        wrote = 0

        async def flood() -> None:
            nonlocal wrote
            while True:
                await channel.write(bytes(1 << 20))
                wrote += 1 << 20

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(flood(), 1.0)
        assert wrote < 64 << 20
        channel.write_eof()
        got = 0
        while data := await channel.read(100_000):
            assert len(data) <= 100_000
            got += len(data)
        # The piece whose write was cancelled may have gone out in part.
        assert wrote <= got <= wrote + (1 << 20)
        assert await channel.wait() == 5
        await channel.wait_closed()
        assert channel.stderr_tail() == b"last words\n"
        assert not channel.is_open


async def test_closing_a_channel_lets_the_remote_see_the_end_and_frees_the_room(lab: Lab) -> None:
    async with pool_of(lab) as pool:
        channel = await pool.open_channel("h1", "cat >/dev/null; touch ~/saw-the-end")
        assert pool.counters("h1").channels == 1
        channel.close()
        await asyncio.wait_for(channel.wait_closed(), 5)
        assert pool.counters("h1").channels == 0
        assert (
            await pool.run(
                "h1", "until [ -e ~/saw-the-end ]; do sleep 0.01; done; rm ~/saw-the-end", timeout_s=5
            )
        ).exit_status == 0


async def test_environment_of_the_configuration_is_sent(make_lab: MakeLab) -> None:
    lab = make_lab(1)
    lab.add_alias("env", HostName=lab.host("h1").address, SetEnv="LC_LAB='a b'")
    async with pool_of(lab) as pool:
        assert (await pool.run("env", "echo $LC_LAB")).stdout == b"a b\n"


async def test_a_far_host_connects_in_a_few_round_trips(lab: Lab) -> None:
    far = lab.delay_proxy("h1", 0.05)
    async with pool_of(lab) as pool:
        start = time.monotonic()
        assert (await pool.run(far, "hostname")).stdout == b"h1\n"
        round_trips = (time.monotonic() - start) / 0.1
        print(f"connect and first command: {round_trips:.1f} round trips")
        assert round_trips < 14


async def test_a_closed_pool_answers_those_who_wait_and_takes_no_more(lab: Lab) -> None:
    pool = pool_of(lab, limits=Limits(channels=1, connections=1))
    held = await pool.open_channel("h1", "cat")
    waiting = [asyncio.create_task(pool.run("h1", "true")) for _ in range(3)]
    await asyncio.sleep(0)
    await pool.close()
    for task in waiting:
        with pytest.raises(HostUnreachable, match="pool was closed"):
            await task
    assert not held.is_open
    with pytest.raises(HostUnreachable, match="pool was closed"):
        await pool.run("h1", "true")


async def test_a_jump_host_meant_for_every_host_is_not_sent_through_itself(lab: Lab, tmp_path: Path) -> None:
    inner = lab.host("h2").inner[0]
    (tmp_path / "config").write_text(
        f"Host gate\n  HostName {lab.host('h1').address}\nHost in\n  HostName {inner}\n"
        f"Host *\n  ProxyJump gate\nInclude {lab.ssh_config}\n"
    )
    async with Pool(config_file=str(tmp_path / "config")) as pool:
        assert (await pool.run("in", "hostname")).stdout == b"h2\n"
        assert (await pool.run("gate", "hostname")).stdout == b"h1\n"


async def test_abandoned_commands_that_fill_every_connection_do_not_stop_the_next(make_lab: MakeLab) -> None:
    lab = make_lab(1, MaxSessions=1)
    async with pool_of(lab, limits=Limits(channels=1, connections=2)) as pool:
        for _ in range(4):
            result = await pool.run("h1", "sleep 60", timeout_s=0.5)
            assert result.exit_status is None
        assert (await pool.run("h1", "echo next", timeout_s=10)).stdout == b"next\n"
