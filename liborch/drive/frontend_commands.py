"""Running a batch system's commands: on a host's frontend, which may be this machine, or on a node."""

from __future__ import annotations

import asyncio
import contextlib
import shlex

from liborch.batch_systems.base import MOST_OUTPUT, Command, Output
from liborch.specs import HostProfile
from liborch.ssh import Pool


async def run_on_frontend(profile: HostProfile, pool: Pool, command: Command) -> Output:
    """Run a command; what nobody knows the end of has no `code`.

    Raises:
        HostUnreachable, HostKeyUnknown, HostKeyChanged, AuthenticationRefused, SpecError: As `Pool.run`.
    """
    if profile.ssh == "local":
        return await _run_here(command)
    return await run_over_ssh(profile.ssh, pool, command)


async def run_over_ssh(host: str, pool: Pool, command: Command) -> Output:
    """Run a command on a host. Raises what `run_on_frontend` raises."""
    done = await pool.run(host, shlex.join(command.argv), input=command.stdin, timeout_s=command.timeout_s)
    code = 255 if done.signal is not None else done.exit_status
    return Output(None if done.unknown else code, done.stdout, done.stderr, done.truncated)


async def _run_here(command: Command) -> Output:
    """Run a command of a batch system on this machine; killed when its time is over."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command.argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        return Output(127, b"", f"{command.argv[0]}: {error.strerror}".encode())
    try:
        async with asyncio.timeout(command.timeout_s):
            stdout, stderr = await process.communicate(command.stdin)
    except TimeoutError:
        return Output(None)
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    return Output(
        process.returncode,
        stdout[:MOST_OUTPUT],
        stderr[:MOST_OUTPUT],
        max(len(stdout), len(stderr)) > MOST_OUTPUT,
    )
