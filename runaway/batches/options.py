"""What `runaway batch` was told; the names are those of its options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from liborch.specs import Leave


@dataclass(frozen=True)
class BatchOptions:
    """See `runaway batch --help`."""

    remotes: str
    script: str
    template: tuple[str, ...]
    arguments_file: str | None
    grids: tuple[str, ...]
    csv: str | None
    jsonl: str | None
    repeats: int
    shuffle: bool
    seed: int
    output_folder: str | None
    outputs_file: str | None
    remote_folder: str | None
    remotes_file: str | None
    into_existing: bool
    post_command: str | None
    post_script: str | None
    post_time: float | None
    send_ignore: str | None
    fetch_ignore: str | None
    leave: Leave
    stay: bool
    no_env_read: bool
    variables: tuple[tuple[str, str], ...]
    walltime: float | None
    cpus: int | None
    mem: int
    gpus: float | None
    alloc: str | None
    on: tuple[str, ...]
    exclude: tuple[str, ...]
    each: bool
    nodes: int
    slots: int | None
    retries: int
    retry_on: tuple[str, ...]
    max_failures: int | None
    halt: Literal["soon", "now"]
    give_up: float
    resume: bool
    batch: str | None
    retry_failed: bool
    code_changed: Literal["keep", "rerun"] | None
    yes: bool
    detach: bool
    dry_run: bool
    follow: bool
    as_json: bool
    accept_new: bool
    verbose: bool
    silent: bool
    debug_ssh: bool
