"""What must hold when links fail under running executions: seen through the whole of it, over real sshds."""

from __future__ import annotations

import asyncio
import hashlib
import time
from pathlib import Path

import pytest

import liborch
from liborch.core.policy import Policy
from liborch.drive.execution import Execution
from liborch.ssh import Limits
from tests.cli.person import Person
from tests.lab.hosts import Host, Lab

pytestmark = pytest.mark.lab

#: A silent link is given up after a second, and tried again often.
QUICK = Limits(keepalive_interval_s=0.3, keepalive_count=2, connect_timeout_s=2, backoff_cap_s=0.5)
SOON = Policy(backoff_base_s=0.1, backoff_cap_s=0.5)

#: Numbers, ten a second.
COUNTING = ["sh", "-c", "i=0; while [ $i -lt 40 ]; do echo $i; i=$((i+1)); sleep 0.1; done; exit 3"]
COUNTED = b"".join(b"%d\n" % i for i in range(40))


class Heard:
    """What came of a live output."""

    def __init__(self) -> None:
        self.data = b""
        self._more = asyncio.Event()

    def __call__(self, name: str, data: bytes) -> None:
        assert name == "out"
        self.data += data
        self._more.set()

    async def until(self, size_bytes: int) -> None:
        async with asyncio.timeout(30):
            while len(self.data) < size_bytes:
                self._more.clear()
                await self._more.wait()


async def until_linked(host: liborch.Host, linked: bool, within_s: float = 30) -> float:
    """Wait for the link to be open, or not; returns how long that took."""
    began = time.monotonic()
    async with asyncio.timeout(within_s):
        while any((target.link is not None) != linked for target in host._driver.targets.values()):
            await asyncio.sleep(0.02)
    return time.monotonic() - began


async def ended(execution: Execution, within_s: float = 45) -> liborch.Result:
    async with asyncio.timeout(within_s):
        return await execution


def once(h1: Host, name: str) -> list[str]:
    """A command that leaves a line when it starts and one when it ends."""
    return ["sh", "-c", f"echo start >> /tmp/{name}; sleep 3; echo end >> /tmp/{name}; exit 7"]


async def test_a_short_silence_is_no_event_at_all(h1: Host, asker: Person) -> None:
    patient = Limits(keepalive_interval_s=1.5, keepalive_count=3)
    async with liborch.open_host("h1", limits=patient) as host:
        heard = Heard()
        execution = host.submit(COUNTING, on_output=heard)
        await heard.until(10)
        h1.drop_packets()
        await asyncio.sleep(3)
        h1.restore()
        result = await ended(execution)
        assert (result.exit_code, heard.data, result.stdout) == (3, COUNTED, COUNTED)
        counters = host._driver._pool.counters("h1")
        assert (counters.connections_total, counters.failures) == (1, 0)


async def test_what_runs_behind_a_cut_goes_on_and_its_true_results_come(h1: Host, asker: Person) -> None:
    async with liborch.open_host("h1", limits=QUICK, policy=SOON) as host:
        heard = Heard()
        counting = host.submit(COUNTING, on_output=heard)
        quiet = [host.submit(once(h1, f"cut{i}")) for i in range(1)]
        await heard.until(10)
        h1.drop_packets()
        noticed_s = await until_linked(host, False)
        assert noticed_s < 10
        # All of it ends while nobody can see it.
        await asyncio.sleep(4)
        assert not counting.is_done
        assert not any(each.is_done for each in quiet)
        assert any("unreachable" in line or "h1" in line for line in host.explain(counting))
        h1.restore()
        assert await until_linked(host, True) < 15
        result = await ended(counting, 10)
        assert (result.state, result.exit_code, result.attempts) == ("failed", 3, 1)
        assert heard.data == COUNTED
        for number, each in enumerate(quiet):
            assert (await ended(each, 10)).exit_code == 7
            assert h1.path(f"/tmp/cut{number}").read_text() == "start\nend\n"


async def test_a_reset_connection_leaves_no_gap_in_the_output(h1: Host, asker: Person) -> None:
    async with liborch.open_host("h1", limits=QUICK, policy=SOON) as host:
        heard = Heard()
        execution = host.submit(COUNTING, on_output=heard)
        for size in (10, 40, 70):
            await heard.until(size)
            h1.reset_connections()
        result = await ended(execution)
        assert (result.exit_code, heard.data, result.stdout) == (3, COUNTED, COUNTED)
        assert host._driver._pool.counters("h1").connections_total >= 3


async def test_all_sshds_of_a_node_are_killed_and_come_back(h1: Host, asker: Person) -> None:
    async with liborch.open_host("h1", limits=QUICK, policy=SOON) as host:
        heard = Heard()
        execution = host.submit(COUNTING, on_output=heard)
        await heard.until(10)
        h1.stop_sshd(sessions=True)
        await until_linked(host, False)
        waiting = host.submit(["echo", "later"])
        await asyncio.sleep(1)
        assert not waiting.is_done
        h1.start_sshd()
        assert (await ended(execution)).exit_code == 3
        assert heard.data == COUNTED
        assert (await ended(waiting)).stdout == b"later\n"


async def test_a_listener_that_restarts_goes_unnoticed(h1: Host, asker: Person) -> None:
    async with liborch.open_host("h1", limits=QUICK) as host:
        execution = host.submit(["sh", "-c", "sleep 1; echo done"])
        await until_linked(host, True)
        h1.stop_sshd()
        # A connection that is open needs no listener; one that is not waits for it.
        async with liborch.open_host(
            "h1", limits=QUICK, policy=Policy(first_attempts=50, backoff_cap_s=0.5)
        ) as other:
            late = other.submit(["echo", "hello"])
            await asyncio.sleep(1)
            assert not late.is_done
            h1.start_sshd()
            assert (await ended(late)).stdout == b"hello\n"
        assert (await ended(execution)).stdout == b"done\n"
        assert host._driver._pool.counters("h1").connections_total == 1


async def test_a_reboot_loses_what_ran_and_keeps_what_had_ended(h1: Host, asker: Person) -> None:
    async with liborch.open_host("h1", limits=QUICK, policy=SOON) as host:
        ends = host.submit(["sh", "-c", "sleep 1; exit 9"])
        runs = host.submit(["sleep", "1000"], retry_on=())
        while runs.state != "running" or ends.state != "running":
            await asyncio.sleep(0.02)
        h1.drop_packets()
        await until_linked(host, False)
        await asyncio.sleep(1)
        h1.reboot()
        assert (await ended(ends)).exit_code == 9
        lost = await ended(runs)
        assert (lost.state, lost.exit_code, lost.attempts) == ("lost", None, 1)
        assert "boot" in lost.why


def _tree(folder: Path, size_bytes: int) -> str:
    data = hashlib.shake_256(b"tree").digest(size_bytes)
    (folder / "data.bin").write_bytes(data)
    (folder / "run.sh").write_text("mkdir made; cat data.bin data.bin > made/twice.bin; echo ok\n")
    return hashlib.sha256(data * 2).hexdigest()


def test_a_link_cut_in_the_middle_of_a_transfer_harms_nothing(h1: Host, rough: Lab, asker: Person) -> None:
    wanted = _tree(asker.folder, 6 << 20)
    h1.drop_after(4_000_000)
    running = asker.start("exec", "h1", "run.sh")
    result = asker.folder / "made" / "twice.bin"
    # The connection that has carried so much is dead from now on; only a new one gets through.
    time.sleep(4)
    assert not result.exists()
    h1.restore()
    out, err = running.communicate(timeout=90)
    assert (running.returncode, out) == (0, b"ok\n"), err.decode()
    assert hashlib.sha256(result.read_bytes()).hexdigest() == wanted
    assert sorted(path.name for path in asker.folder.iterdir()) == ["data.bin", "made", "run.sh"]
    assert [path.name for path in result.parent.iterdir()] == ["twice.bin"]


@pytest.mark.parametrize("times", [3])
def test_sending_survives_resets(h1: Host, rough: Lab, asker: Person, times: int) -> None:
    wanted = _tree(asker.folder, 24 << 20)
    slow = rough.delay_proxy("h1", 0.005, 12e6)
    running = asker.start("exec", slow, "run.sh")
    for _ in range(times):
        time.sleep(0.8)
        h1.reset_connections()
    out, err = running.communicate(timeout=90)
    assert (running.returncode, out) == (0, b"ok\n"), err.decode()
    assert hashlib.sha256((asker.folder / "made" / "twice.bin").read_bytes()).hexdigest() == wanted
    assert err.decode().count(f"{slow}: ") >= 2, "the resets hit nothing"


async def test_walltime_is_kept_while_nobody_can_see_it(h1: Host, asker: Person) -> None:
    async with liborch.open_host("h1", limits=QUICK, policy=SOON) as host:
        execution = host.submit(["sleep", "1000"], walltime_s=2.0)
        await until_linked(host, True)
        while execution.state != "running":
            await asyncio.sleep(0.02)
        h1.drop_packets()
        await until_linked(host, False)
        await asyncio.sleep(2)
        h1.restore()
        result = await ended(execution)
        assert (result.state, result.reason) == ("failed", "walltime")
        assert result.duration_s is not None
        assert 1.9 <= result.duration_s <= 3.5


async def test_who_takes_too_much_memory_is_told_so(h1: Host, asker: Person) -> None:
    async with liborch.open_host("h1") as host:
        greedy = ["python3", "-c", "x = bytearray(400 << 20); print(len(x))"]
        result = await ended(host.submit(greedy, resources=liborch.Resources(memory_bytes=40 << 20)))
        assert (result.state, result.stdout) == ("failed", b"")
        if any(means.startswith("memory:cgroup") for means in result.means):
            assert result.reason == "oom"
        assert (await ended(host.submit(["true"]))).ok


@pytest.mark.soak
async def test_ten_seconds_of_silence_are_no_event_with_stock_settings(h1: Host, asker: Person) -> None:
    async with liborch.open_host("h1") as host:
        heard = Heard()
        execution = host.submit(
            ["sh", "-c", "i=0; while [ $i -lt 200 ]; do echo $i; i=$((i+1)); sleep 0.1; done"],
            on_output=heard,
        )
        await heard.until(10)
        h1.drop_packets()
        await asyncio.sleep(10)
        h1.restore()
        assert (await ended(execution, 60)).ok
        assert heard.data == b"".join(b"%d\n" % i for i in range(200))
        counters = host._driver._pool.counters("h1")
        assert (counters.connections_total, counters.failures) == (1, 0)


@pytest.mark.soak
async def test_ten_minutes_without_a_network_lose_nothing_with_stock_settings(
    h1: Host, asker: Person
) -> None:
    async with liborch.open_host("h1") as host:
        executions = [host.submit(once(h1, f"long{n}")) for n in range(3)]
        sleeping = host.submit(["sh", "-c", "sleep 620; exit 5"])
        await until_linked(host, True)
        h1.drop_packets()
        assert await until_linked(host, False, 60) <= 25
        await asyncio.sleep(600)
        assert not any(each.is_done for each in (*executions, sleeping))
        h1.restore()
        assert await until_linked(host, True, 60) <= 45
        for number, each in enumerate(executions):
            assert (await ended(each)).exit_code == 7
            assert h1.path(f"/tmp/long{number}").read_text() == "start\nend\n"
        assert (await ended(sleeping, 60)).exit_code == 5
