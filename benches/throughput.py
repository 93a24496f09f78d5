"""Noop executions per second through a real sshd, 4 slots, journal on, beside `xargs -P4 -n1 /bin/true` in the same run.

Both are measured in turns, since a shared machine changes its speed; the ratio is that of the medians.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import time

import _lab

ROUNDS = 3
COUNT = 6000


def xargs(count: int) -> float:
    """Runs per second of xargs."""
    began = time.perf_counter()
    words = "\n".join(map(str, range(count)))
    subprocess.run(["xargs", "-P4", "-n1", "/bin/true"], input=words.encode(), check=True)
    return count / (time.perf_counter() - began)


async def run(host: object, count: int) -> float:
    """Executions per second of one host, from the first submitted to the last result."""
    began = time.perf_counter()
    executions = [host.submit(["/bin/true"]) for _ in range(count)]  # type: ignore[attr-defined]
    ok = 0
    for execution in executions:
        ok += (await execution).ok
    seconds = time.perf_counter() - began
    if ok != count:
        raise SystemExit(f"only {ok} of {count} succeeded")
    return count / seconds


async def measure(environment: dict[str, str], name: str) -> None:
    import liborch

    profile = liborch.HostProfile(
        name=name, ssh=name, slots=__import__("liborch.specs").specs.SlotSpec(count=4)
    )
    ours: list[float] = []
    theirs: list[float] = []
    async with liborch.open_host(profile, environment=environment) as host:
        await run(host, 1000)
        for _ in range(ROUNDS):
            theirs.append(xargs(COUNT))
            cpu = time.process_time()
            ours.append(await run(host, COUNT))
            cpu = (time.process_time() - cpu) / COUNT
    rate, other = statistics.median(ours), statistics.median(theirs)
    _lab.report(
        "throughput",
        round(rate),
        "executions/s",
        ratio=round(rate / other, 3),
        better="higher",
        command="benches/throughput.py: open_host().submit(['/bin/true']), 4 slots, beside xargs -P4 -n1 /bin/true",
        xargs=round(other),
        rounds=[round(x) for x in ours],
        xargs_rounds=[round(x) for x in theirs],
        client_cpu_ms=round(cpu * 1000, 3),
    )


def main() -> None:
    with _lab.lab() as lab, _lab.own_folders(lab.ssh_config) as environment:
        asyncio.run(measure(environment, "h1"))


if __name__ == "__main__":
    main()
