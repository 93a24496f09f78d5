"""Uses Orchestra from a program of one's own: slots to await, executions to submit, results as they come.

Runs on this machine as it stands; give the name of a host (a profile, an SSH alias, `user@name:port`) to run there.
"""

import asyncio
import sys

import liborch
from liborch.specs import ExecutionSpec, Resources


async def one_after_another(host: liborch.Host) -> None:
    """Hold a slot and run two commands in it; leaving the block gives it back, also when cancelled."""
    async with host.slot(cpus=1) as slot:
        result = await slot.run(["uname", "-s"])
        print("system:", result.stdout.decode().strip())
        result = await slot.run(["sh", "-c", "exit 3"])
        print("exit code:", result.exit_code)


async def all_at_once(host: liborch.Host) -> None:
    """Submit more than there is room for; take results as they come, in whatever order."""
    squares = [
        host.submit(
            ExecutionSpec(argv=("sh", "-c", "echo $(($1 * $1))", "sh", str(n)), resources=Resources(cpus=1))
        )
        for n in range(8)
    ]
    total = 0
    async for result in liborch.as_completed(squares):
        total += int(result.stdout)
    print("sum of squares:", total)


async def main(name: str) -> None:
    """Open the host once and use it for everything."""
    async with liborch.open_host(name) as host:
        await one_after_another(host)
        await all_at_once(host)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "local"))
