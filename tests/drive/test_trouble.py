"""A journal that stalls, disks that fill, nothing kept of what is over: the driver beside the work itself."""

# ruff: noqa: ASYNC221 -- what a test sets up and looks at may block; nothing else runs meanwhile.
from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import liborch
from liborch.drive.driver import Driver
from liborch.errors import InvariantError, SpecError, StorageError, WorldError
from tests.drive.conftest import Here, assert_quiet

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@pytest.fixture
def small_state(here: Here) -> Iterator[Path]:
    """The journal and outputs on a file system of one megabyte."""
    here.state.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "none", here.state], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount: {mounted.stderr.decode()}")
    try:
        yield here.state
    finally:
        subprocess.run(["umount", "-l", here.state], check=True)


def fill(folder: Path) -> Path:
    """Take all the room there is."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    return filler


@root_only
async def test_output_waits_for_room_on_a_full_disk(here: Here, small_state: Path) -> None:
    told: list[str] = []
    async with liborch.open_host("local") as host:
        host._driver._listener = lambda what, _x, fields: told.append(f"{what} {fields.get('why', '')}")
        assert (await host.submit(["true"])).ok
        execution = host.submit(["head", "-c", "2000000", "/dev/zero"])
        async with asyncio.timeout(20):
            while not any(line.startswith(("trouble", "stalled")) for line in told):
                await asyncio.sleep(0.02)
        assert any("No space left" in line and str(small_state) in line for line in told)
        assert not execution.is_done
        subprocess.run(["mount", "-o", "remount,size=16m", small_state], check=True)
        async with asyncio.timeout(20):
            result = await execution
        assert (result.state, result.stdout) == ("succeeded", bytes(2000000))
    await assert_quiet()


@root_only
async def test_work_goes_on_when_the_journal_has_room_again(here: Here, small_state: Path) -> None:
    told: list[str] = []
    async with liborch.open_host("local") as host:
        host._driver._listener = lambda what, _x, _fields: told.append(what)
        assert (await host.submit(["true"])).ok
        filler = fill(small_state)
        executions = [host.submit(["echo", "x" * 400, str(n)]) for n in range(300)]
        async with asyncio.timeout(20):
            while "stalled" not in told:
                await asyncio.sleep(0.02)
        filler.unlink()
        subprocess.run(["mount", "-o", "remount,size=16m", small_state], check=True)
        async with asyncio.timeout(30):
            for number, execution in enumerate(executions):
                assert (await execution).stdout.endswith(b" %d\n" % number)
        assert "recovered" in told


@root_only
async def test_leaving_with_a_journal_that_takes_nothing_is_bounded_and_says_so(
    here: Here, small_state: Path
) -> None:
    with pytest.raises(StorageError, match="No space left"):  # noqa: PT012
        async with asyncio.timeout(60), liborch.open_host("local") as host:
            assert (await host.submit(["true"])).ok
            fill(small_state)
            executions = [host.submit(["echo", "x" * 2000]) for _ in range(500)]
            async with asyncio.timeout(10):
                while host._driver._writer.stalled is None:
                    await asyncio.sleep(0.02)
            host._driver.detached = True
    for execution in executions:
        # Nobody who awaits one now waits for ever.
        async with asyncio.timeout(1):
            with contextlib.suppress(WorldError):
                assert (await execution).ok
    await assert_quiet()


async def test_a_task_that_fails_leaves_nobody_waiting(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    async with asyncio.timeout(30), liborch.open_host("local") as host:
        sleeping = host.submit(["sleep", "1000"])
        while sleeping.state != "running":
            await asyncio.sleep(0.01)
        waiting = asyncio.ensure_future(sleeping.wait())
        slots = asyncio.ensure_future(_hold(host, 100))

        async def broken() -> None:
            raise ZeroDivisionError

        host._driver._spawn(broken())
        with pytest.raises(InvariantError):
            await waiting
        with pytest.raises((InvariantError, SpecError)):
            await slots
        with pytest.raises(InvariantError):
            host.submit(["true"])
        await host._driver.wait_idle()
    await assert_quiet()


async def _hold(host: liborch.Host, cpus: int) -> None:
    async with host.slot(cpus=cpus):
        pass


async def test_what_is_too_large_is_refused_at_once_naming_the_largest(here: Here) -> None:
    async with liborch.open_host("local") as host:
        with pytest.raises(SpecError, match="more than any node has; the largest, local, has"):
            await host.submit(["true"], resources=liborch.Resources(cpus=5000))
        with pytest.raises(SpecError, match="5000 cores"):
            await _hold(host, 5000)
        with pytest.raises(SpecError, match="send them as a file"):
            host.submit(["true", *["x" * 100_000] * 40])
        # Neither harms what comes after.
        assert (await host.submit(["echo", "fine"])).stdout == b"fine\n"


async def test_long_arguments_travel_in_as_many_messages_as_it_takes(here: Here) -> None:
    async with liborch.open_host("local") as host:
        executions = [host.submit(["sh", "-c", "echo ${#1}", "sh", "é" * 60_000]) for _ in range(40)]
        for execution in executions:
            assert (await execution).stdout in (b"120000\n", b"60000\n")


async def test_another_attempt_has_its_own_output(here: Here, tmp_path: Path) -> None:
    script = f"if mkdir {tmp_path}/first 2>/dev/null; then echo first try; exit 5; else echo second; fi"
    heard: list[bytes] = []
    async with liborch.open_host("local") as host:
        execution = host.submit(
            ["sh", "-c", script],
            retries=1,
            retry_on=("exit:5",),
            on_output=lambda _n, data: heard.append(data),
        )
        result = await execution
        assert (result.attempts, result.stdout, result.state) == (2, b"second\n", "succeeded")
        assert b"".join(heard).endswith(b"second\n")


async def test_nothing_is_kept_of_what_is_over(here: Here) -> None:
    async with liborch.open_host("local") as host:
        driver = host._driver
        for _ in range(4):
            executions = [host.submit(["true"]) for _ in range(500)]
            async for result in liborch.as_completed(executions):
                assert result.ok
            del executions, result
        await driver.wait_idle()
        assert _sizes(driver) == {}
        gc.collect()
        assert sum(isinstance(thing, liborch.Execution) for thing in gc.get_objects()) == 0


def _sizes(driver: Driver) -> dict[str, int]:
    """What a driver holds, by name; without its nodes and what they are known by."""
    found = {}
    for name, value in vars(driver).items():
        if isinstance(value, dict | list | set) and name not in ("targets", "_tasks") and value:
            found[name] = len(value)
    if driver.core.items:
        found["core.items"] = len(driver.core.items)
    return found


@pytest.mark.soak
async def test_twenty_thousand_ends_leave_no_more_than_two_thousand(here: Here) -> None:
    async with liborch.open_host("local") as host:
        used = []
        for _ in range(10):
            executions = [host.submit(["true"]) for _ in range(2000)]
            async for result in liborch.as_completed(executions):
                assert result.ok
            del executions, result
            await host._driver.wait_idle()
            assert _sizes(host._driver) == {}
            gc.collect()
            used.append(_resident_bytes())
        # The first rounds pay for what is made once; bytes per execution after them.
        assert (used[-1] - used[5]) / 8_000 < 200


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
