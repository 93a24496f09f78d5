"""Uses a host from a program without asyncio, through the standard library's `concurrent.futures`.

Runs on this machine as it stands; give the name of a host (a profile, an SSH alias, `user@name:port`) to run there.
Functions need cloudpickle (`pip install 'orchestra-tools[functions]'`) and the same Python, such as 3.11, on the host.
"""

import random
import sys
from concurrent.futures import as_completed

import liborch


def hits(seed: int, throws: int) -> int:
    """How many of so many random points of a square lie in its quarter circle."""
    chance = random.Random(seed)
    return sum(chance.random() ** 2 + chance.random() ** 2 < 1 for _ in range(throws))


def main(name: str) -> None:
    """Run commands first, then a function."""
    with liborch.Executor(name) as executor:
        # Commands: a future of each has a Result, whatever its exit code is.
        codes = [executor.submit(["sh", "-c", f"exit {n}"], cpus=1) for n in range(3)]
        print("exit codes:", sorted(future.result().exit_code for future in as_completed(codes)))

        # A function: called there, what it returns is here. Ten calls are made by one process.
        throws = 10_000
        total = sum(executor.map(hits, range(40), [throws] * 40, chunksize=10))
        print(f"pi is about {4 * total / (40 * throws):.3f}")

        # What it raises is here, too.
        error = executor.submit(divmod, 1, 0).exception()
        print("an exception:", error)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "local")
