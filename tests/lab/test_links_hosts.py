"""Hosts that change their key, refuse, limit, hang or lose packets: seen through the whole of it, over real sshds."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
from collections.abc import Callable

import pytest

import liborch
from liborch.core.policy import Policy
from liborch.errors import HostKeyChanged, HostKeyUnknown, HostUnreachable
from liborch.specs import HostProfile, NodeSpec
from liborch.ssh import Limits
from tests.cli.person import RUNAWAY, Person
from tests.lab.hosts import Host, Lab
from tests.lab.test_links_torn import QUICK, SOON, ended, until_linked

pytestmark = pytest.mark.lab


def two_nodes() -> HostProfile:
    return HostProfile("both", "h1", nodes=(NodeSpec("h1"), NodeSpec("h2")))


async def test_a_key_that_changes_meanwhile_stops_that_host_alone(
    h1: Host, rough: Lab, asker: Person
) -> None:
    async with (
        liborch.open_host("h1", limits=QUICK, policy=SOON) as changing,
        liborch.open_host("h2", limits=QUICK) as other,
    ):
        there = other.submit(["sh", "-c", "sleep 2; echo fine"])
        running = changing.submit(["sh", "-c", "sleep 1; echo kept"])
        while running.state != "running":
            await asyncio.sleep(0.02)
        h1.change_host_key()
        h1.reset_connections()
        with pytest.raises(HostKeyChanged) as refused:
            await ended(running)
        assert str(rough.known_hosts) in str(refused.value)
        # Neither is anything new given to it, nor does anybody wait for what cannot come.
        with pytest.raises(HostKeyChanged):
            await ended(changing.submit(["true"]))
        with pytest.raises(HostKeyChanged):
            async with changing.slot():
                pass
        assert (await ended(there)).stdout == b"fine\n"
        changing._driver.detached = True
    assert "Accepted" not in h1.sshd_log().rpartition("Server listening")[2]
    # The person sets it right: the result is there, and is told once.
    rough.trust()
    done = asker.run("attach", running.id)
    assert (done.returncode, done.stdout) == (0, b"kept\n"), done.stderr.decode()


def test_an_unknown_key_is_refused_with_its_fingerprint(h1: Host, rough: Lab, asker: Person) -> None:
    alias = rough.add_alias("stranger", HostName=h1.address, UserKnownHostsFile=str(asker.root / "none"))
    done = asker.run("exec", alias, "true")
    assert done.returncode == 255
    assert b"SHA256:" in done.stderr
    assert b"--accept-new" in done.stderr
    assert b"Traceback" not in done.stderr


async def test_clients_that_come_all_at_once_are_let_in_one_after_the_other(
    make_lab: Callable[..., Lab], asker: Person
) -> None:
    lab = make_lab(1, MaxStartups="3:100:4")
    environment = {**asker.environment, "ORCHESTRA_SSH_CONFIG": str(lab.ssh_config)}

    async def one() -> None:
        # Clients that know nothing of each other: each with connections of its own.
        async with liborch.open_host("h1", environment=environment) as host:
            result = await ended(host.submit(["true"]), 60)
            assert (result.ok, result.attempts) == (True, 1)

    async with asyncio.TaskGroup() as group:
        for _ in range(12):
            group.create_task(one())


@pytest.mark.parametrize("most", [1, 2])
async def test_a_server_with_few_sessions_does_all_the_same(
    make_lab: Callable[..., Lab], asker: Person, most: int
) -> None:
    lab = make_lab(1, MaxSessions=most)
    environment = {**asker.environment, "ORCHESTRA_SSH_CONFIG": str(lab.ssh_config)}
    async with liborch.open_host("h1", environment=environment) as host:
        executions = [host.submit(["sh", "-c", f"echo {n}"]) for n in range(500)]
        for number, execution in enumerate(executions):
            result = await ended(execution, 60)
            assert (result.stdout, result.attempts) == (b"%d\n" % number, 1)
    (asker.folder / "run.sh").write_text("echo hello > made.txt; cat run.sh >&2\n")
    done = asker.run("exec", "h1", "run.sh", ORCHESTRA_SSH_CONFIG=str(lab.ssh_config))
    assert done.returncode == 0, done.stderr.decode()
    assert (asker.folder / "made.txt").read_text() == "hello\n"


async def test_a_hung_host_is_noticed_and_holds_up_nobody_else(h1: Host, asker: Person) -> None:
    async with liborch.open_host(two_nodes(), limits=QUICK, policy=SOON) as host:
        both = [host.submit(["sh", "-c", "sleep 0.2; hostname"]) for _ in range(16)]
        names = {(await ended(each)).stdout for each in both}
        assert names == {b"h1\n", b"h2\n"}
        stopped = [process.pid for process in h1.processes() if process.argv[0].startswith("sshd:")]
        for pid in stopped:
            h1.kill(pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            async with asyncio.timeout(25):
                while host._driver.targets["h1"].link is not None:
                    await asyncio.sleep(0.05)
            assert time.monotonic() - began < 10
            # What is handed over from now on is done by the other one, in its own time.
            more = [host.submit(["sh", "-c", "hostname"]) for _ in range(20)]
            assert {(await ended(each, 10)).stdout for each in more} == {b"h2\n"}
        finally:
            for pid in stopped:
                h1.kill(pid, signal.SIGCONT)
        async with asyncio.timeout(45):
            while host._driver.targets["h1"].link is None:
                await asyncio.sleep(0.05)


async def test_losing_one_packet_in_twenty_loses_no_link(h1: Host, asker: Person) -> None:
    patient = Limits(keepalive_interval_s=1.0, keepalive_count=3)
    async with liborch.open_host("h1", limits=patient) as host:
        assert (await ended(host.submit(["true"]))).ok
        h1.lose_packets(0.05)
        executions = [host.submit(["sh", "-c", "head -c 20000 /dev/zero"]) for _ in range(30)]
        for each in executions:
            assert (await ended(each)).stdout_bytes == 20000
        counters = host._driver._pool.counters("h1")
        assert (counters.connections_total, counters.failures) == (1, 0)


async def test_bulk_on_a_thin_line_starves_nobody(h1: Host, rough: Lab, asker: Person) -> None:
    thin = rough.delay_proxy("h1", 0.02, 256_000 / 8)
    async with liborch.open_host(thin) as host:
        assert (await ended(host.submit(["true"]))).ok
        bulk = host.submit(["head", "-c", "250000", "/dev/urandom"])
        while bulk.state not in ("collecting", "succeeded"):
            await asyncio.sleep(0.02)
        result = await ended(bulk, 60)
        assert len(result.stdout) == 250_000
        assert host._driver._pool.counters(thin).connections_total == 1


async def test_nobody_waits_for_ever_for_a_host_that_is_not_there(rough: Lab, asker: Person) -> None:
    alias = rough.add_alias("silent", HostName="10.213.255.77", ConnectTimeout=1)
    async with liborch.open_host(alias, policy=Policy(first_attempts=2, backoff_base_s=0.1)) as host:
        with pytest.raises(HostUnreachable):
            await ended(host.submit(["true"]), 20)
        with pytest.raises(HostUnreachable):
            async with asyncio.timeout(20), host.slot():
                pass


async def test_a_stranger_is_told_as_such_to_programs_too(h1: Host, rough: Lab, asker: Person) -> None:
    alias = rough.add_alias("stranger2", HostName=h1.address, UserKnownHostsFile=str(asker.root / "none"))
    async with liborch.open_host(alias) as host:
        with pytest.raises(HostKeyUnknown):
            await ended(host.submit(["true"]))


def test_few_descriptors_are_enough(h1: Host, asker: Person) -> None:
    (asker.folder / "run.sh").write_text(
        "mkdir made; for i in 1 2 3 4 5; do echo $i > made/$i; done; echo ok\n"
    )
    done = subprocess.run(
        ["prlimit", "--nofile=64", RUNAWAY, "exec", "h1", "run.sh"],
        cwd=asker.folder,
        env=asker.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, b"ok\n"), done.stderr.decode()
    assert len(list((asker.folder / "made").iterdir())) == 5


async def test_half_a_minute_is_no_reason_to_be_unlinked_for_longer(h1: Host, asker: Person) -> None:
    """With stock settings: back in time after the network is, however long it was gone."""
    async with liborch.open_host("h1") as host:
        execution = host.submit(["sh", "-c", "sleep 6; exit 4"])
        await until_linked(host, True)
        h1.reset_connections()
        h1.drop_packets()
        await until_linked(host, False)
        await asyncio.sleep(8)
        h1.restore()
        assert await until_linked(host, True, 45) < 45
        assert (await ended(execution)).exit_code == 4


async def test_two_names_of_one_machine_are_one_node(h1: Host, rough: Lab, asker: Person) -> None:
    again = rough.add_alias("h1-again", HostName=h1.address)
    profile = HostProfile("both", "h1", nodes=(NodeSpec("h1"), NodeSpec(again)))
    async with liborch.open_host(profile, limits=QUICK) as host:
        done = [host.submit(["sh", "-c", f"exit {n}"]) for n in range(4)]
        assert [(await ended(each)).exit_code for each in done] == [0, 1, 2, 3]
        targets = host._driver.targets.values()
        while sum(target.error is not None for target in targets) == 0:
            await asyncio.sleep(0.02)
        refused = next(target for target in targets if target.error is not None)
        assert "is the same node as" in str(refused.error)
