"""The pool stays within a real sshd's limits, whatever is asked of it, and loses no command."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from liborch.ssh import Channel, Completed, Limits, Pool
from tests.lab.hosts import Lab

pytestmark = pytest.mark.lab

MakeLab = Callable[..., Lab]


def pool_of(lab: Lab, limits: Limits | None = None) -> Pool:
    return Pool(limits, rng=Random(7), config_file=str(lab.ssh_config))


def assert_each_ran_once(lab: Lab, host: str, results: list[Completed]) -> None:
    for i, result in enumerate(results):
        assert (result.exit_status, result.stdout, result.unknown) == (i % 200, b"%d\n" % i, "")
    ran = lab.host(host).run("sort -n ~/ran").stdout.split()
    assert ran == [str(i) for i in range(len(results))]


async def run_many(pool: Pool, host: str, count: int) -> list[Completed]:
    commands = [f"echo {i} | tee -a ~/ran; exit {i % 200}" for i in range(count)]
    return await asyncio.gather(*(pool.run(host, command) for command in commands))


def logins(lab: Lab, host: str) -> int:
    return lab.host(host).sshd_log().count("Accepted publickey")


async def test_200_commands_at_once_over_one_connection_of_a_stock_server(make_lab: MakeLab) -> None:
    lab = make_lab(1)
    # A machine too busy to end one command in two seconds would rightly get a second connection; not the point here.
    async with pool_of(lab, Limits(grow_after_s=60)) as pool:
        assert_each_ran_once(lab, "h1", await run_many(pool, "h1", 200))
        counters = pool.counters("h1")
    assert logins(lab, "h1") == 1
    assert counters.connections_total == counters.handshakes == 1
    assert counters.channels_peak_on_one <= 7
    assert counters.channels_total - counters.channels_refused == 200
    assert (counters.channels, counters.waiting, counters.failures) == (0, 0, 0)
    assert counters.waited >= 190


@pytest.mark.parametrize("sessions", [1, 2])
async def test_a_server_with_few_sessions_serves_a_lasting_channel_and_commands_beside_it(
    make_lab: MakeLab, sessions: int
) -> None:
    lab = make_lab(1, MaxSessions=sessions)
    async with pool_of(lab) as pool:
        agent = await pool.open_channel("h1", "cat")
        assert_each_ran_once(lab, "h1", await run_many(pool, "h1", 40))
        await agent.write(b"still there")
        assert await agent.read() == b"still there"
        agent.close()
        counters = pool.counters("h1")
    assert counters.failures == 0
    assert 1 <= logins(lab, "h1") <= pool.limits.connections


async def test_sixty_names_of_a_server_with_tiny_max_startups_all_connect(make_lab: MakeLab) -> None:
    lab = make_lab(1, MaxStartups="3:100:4")
    names = [lab.add_alias(f"n{i}", HostName=lab.host("h1").address) for i in range(60)]
    async with pool_of(lab) as pool:
        results = await asyncio.gather(*(pool.run(name, "echo $SSH_CLIENT") for name in names))
        assert all(result.exit_status == 0 for result in results)
        assert len({result.stdout for result in results}) == 60
        assert all(pool.counters(name).handshakes_peak <= 8 for name in names)
        assert sum(pool.counters(name).failures for name in names) == 0
    assert logins(lab, "h1") == 60


async def test_thirty_hosts_at_once(make_lab: MakeLab) -> None:
    lab = make_lab(30)
    async with pool_of(lab) as pool:
        results = await asyncio.gather(*(pool.run(host.alias, "hostname") for host in lab.hosts))
        assert [result.stdout.decode().strip() for result in results] == [host.alias for host in lab.hosts]
        assert all(pool.counters(host.alias).connections == 1 for host in lab.hosts)
    assert all(logins(lab, host.alias) == 1 for host in lab.hosts)


async def test_at_most_four_handshakes_at_a_time_pass_one_jump_host(make_lab: MakeLab) -> None:
    lab = make_lab(2)
    inner = lab.host("h2").inner[0]
    names = [lab.add_alias(f"n{i}", HostName=inner, ProxyJump="h1") for i in range(12)]
    async with pool_of(lab) as pool:
        results = await asyncio.gather(*(pool.run(name, "hostname") for name in names))
        assert all(result.stdout == b"h2\n" for result in results)
        assert {pool.counters(name).handshakes_peak for name in names} == {4}
        assert pool.counters("h1").connections_total == 1
    assert logins(lab, "h1") == 1


async def test_channels_are_given_in_order_of_asking(make_lab: MakeLab) -> None:
    lab = make_lab(1)
    async with pool_of(lab, Limits(channels=1, connections=1)) as pool:
        await asyncio.gather(*(pool.run("h1", f"echo {i} >> ~/order") for i in range(20)))
    assert lab.host("h1").run("cat ~/order").stdout.split() == [str(i) for i in range(20)]


async def test_nothing_leaks_when_awaits_are_cancelled_at_any_moment(make_lab: MakeLab) -> None:
    lab = make_lab(1)
    rng = Random(11)
    async with pool_of(lab, Limits(grow_after_s=60)) as pool:
        await pool.connect("h1")
        for _ in range(12):
            tasks: list[asyncio.Task[Any]] = [
                asyncio.create_task(pool.run("h1", "echo x")) for _ in range(15)
            ]
            tasks += [asyncio.create_task(pool.open_channel("h1", "cat")) for _ in range(3)]
            await asyncio.sleep(rng.random() * 0.05)
            for task in rng.sample(tasks, 12):
                task.cancel()
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(outcome, Channel):
                    outcome.close()
                    await outcome.wait_closed()
        # The server agrees that all is free: as many as it ever gave are given again, and no process is left.
        assert [r.exit_status for r in await run_many(pool, "h1", 20)] == list(range(20))
        # The last ones that were given up may still be ending over there.
        async with asyncio.timeout(30):
            while pool.counters("h1").channels:
                await asyncio.sleep(0.01)
        counters = pool.counters("h1")
        assert (counters.waiting, counters.connections_total) == (0, 1)
    sessions = re.findall(r"sshd: root@notty", " ".join(p.command for p in lab.host("h1").processes()))
    assert len(sessions) <= 1
    assert not lab.host("h1").pids_matching("cat")
