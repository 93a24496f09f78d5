"""`expegit` on the command line. It has no commands yet; `--help` and `--version` answer."""

from __future__ import annotations

import sys

from liborch.command_line import run


def main() -> None:
    """Run the command line; exits with its status."""
    sys.exit(
        run("expegit", "Keep a campaign of experiments in git. Its commands come with a later version.", {})
    )


if __name__ == "__main__":
    main()
