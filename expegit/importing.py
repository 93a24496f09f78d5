"""Records in a campaign what a batch left: from the journal, and from the output folders on this machine.

The journal is the record until then, so this can be done at any time and any number of times: what the campaign holds already is
left as it is. Executions come in groups, a commit each; a group is in the campaign whole or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from expegit.layout import DATA, RECORD, STDERR, STDOUT, Settings, folder_of
from expegit.records import Code, Left, Record, write_record
from expegit.store import Campaign, Change, Link
from liborch.drive.orders import spec_from_json
from liborch.errors import CampaignError, StorageError
from liborch.journal import ExecutionRow, OrchestrationRow
from liborch.quantities import format_size
from runaway.batches.outcomes import Outcomes
from runaway.batches.results import iso, read_small
from runaway.batches.summary import details_of_row
from runaway.records import FINAL, Records, result_of_row
from runaway.secrets import hide_values

#: The variable in which an execution of a campaign finds its code's commit.
COMMIT = "EXPEGIT_COMMIT"
#: Executions that are recorded together at most.
GROUP = 1000
#: What a batch leaves beside results, and what goes elsewhere in the campaign.
_OURS = ("ecode", "stdout", "stderr", "post.out")


@dataclass
class Imported:
    """What an import did."""

    #: Ids that are new in the campaign.
    recorded: list[str] = field(default_factory=list)
    #: How many were there already, and how many have not ended.
    known: int = 0
    under_way: int = 0
    #: (path, why) of results that stay where they are.
    left_out: list[tuple[str, str]] = field(default_factory=list)


def import_batch(campaign: Campaign, records: Records, batch: OrchestrationRow) -> Imported:
    """Record every execution of a batch that has ended and is not in the campaign.

    Raises:
        CampaignError: A result is larger than the campaign takes: names it, and what to do. Groups before it are recorded.
        StorageError: A result cannot be read.
        GitError: git refused.
    """
    done = Imported()
    known = set(campaign.ids())
    importing = _Importing(campaign, records, batch)
    group: list[ExecutionRow] = []

    def record() -> None:
        changes = [change for row in group for change in importing.changes(row, done)]
        campaign.commit(changes, _message(batch, group))
        done.recorded.extend(row.id for row in group)
        for row in group:
            shutil.rmtree(campaign.outputs / row.id, ignore_errors=True)
        group.clear()

    for row in records.journal.each_result(batch.id, replaced=True):
        if row.id in known:
            done.known += 1
        elif row.state not in FINAL:
            done.under_way += 1
        else:
            group.append(row)
            if len(group) >= GROUP:
                record()
    if group:
        record()
    return done


def _message(batch: OrchestrationRow, group: Sequence[ExecutionRow]) -> str:
    count = len(group)
    ok = sum(row.state == "succeeded" for row in group)
    what = "1 execution" if count == 1 else f"{count} executions"
    return f"{what} of {batch.title or batch.id}: {ok} succeeded\n\nbatch {batch.id}\n"


class _Importing:
    def __init__(self, campaign: Campaign, records: Records, batch: OrchestrationRow) -> None:
        self._settings: Settings = campaign.settings
        who = campaign.signature()
        self._who = f"{who.name} <{who.email}>"
        here = Path(details_of_row(records, batch).get("cwd") or "/")
        self._outputs = records.folders.state / "outputs"
        self._outcomes = Outcomes(self._outputs, here)

    def changes(self, row: ExecutionRow, done: Imported) -> Iterator[Change]:
        """The files of an execution in the campaign."""
        result = result_of_row(row)
        spec = spec_from_json(row.spec)
        inside = folder_of(row.id)
        folder = None
        if result.started_at is not None and (spec.outcome_folder or result.output_folder):
            folder = Path(self._outcomes.folder(_Held(spec), result))
        metrics: dict[str, Any] = {}
        left: list[Left] = []
        if folder is not None and folder.is_dir():
            for path, content in self._results(folder, row.host, left, done):
                yield f"{inside}/{DATA}/{path}", content
            metrics = _metrics(folder / "metrics.json")
        for name, data in ((STDOUT, result.stdout), (STDERR, result.stderr)):
            kept = [self._outputs / row.id / name, *([folder / name] if folder is not None else [])]
            yield f"{inside}/{name}", next((path for path in kept if path.is_file()), data)
        record = Record(
            id=row.id,
            state=row.state,
            code=_code_of(spec),
            arguments=tuple(spec.argv[1:]),
            parameters=dict(hide_values(spec.parameters)),
            resources=_asked(spec),
            host=row.host,
            node=row.node or "",
            attempts=row.attempt or 0,
            created=iso(row.submitted_at) or "",
            started=iso(row.started_at) or "",
            ended=iso(row.ended_at) or "",
            reason=row.reason or "",
            exit_code=result.exit_code,
            signal=result.signal,
            peak_memory_bytes=result.peak_memory_bytes,
            metrics=metrics,
            who=self._who,
            left=tuple(left),
        )
        yield f"{inside}/{RECORD}", write_record(record)

    def _results(
        self, folder: Path, host: str, left: list[Left], done: Imported
    ) -> Iterator[tuple[str, Path | Link]]:
        for parent, folders, files in os.walk(folder):
            folders.sort()
            for name in sorted(
                [*files, *(each for each in folders if os.path.islink(os.path.join(parent, each)))]
            ):
                path = Path(parent, name)
                inside = str(path.relative_to(folder))
                if inside in _OURS:
                    continue
                if path.is_symlink():
                    target = os.readlink(path)
                    there = os.path.normpath(os.path.join(os.path.dirname(inside), target))
                    if os.path.isabs(target) or there.startswith(".."):
                        done.left_out.append((str(path), "a link that leads out of its folder"))
                    else:
                        yield inside, Link(target)
                    continue
                if not path.is_file():
                    done.left_out.append((str(path), "no file"))
                    continue
                if any(part == ".git" for part in Path(inside).parts):
                    done.left_out.append((str(path), "git takes nothing called .git"))
                    continue
                size = path.stat().st_size
                if size >= self._settings.large_from_bytes and self._settings.large != "git":
                    raise CampaignError(
                        str(path),
                        f"has {format_size(size)}, more than data.large_from of the campaign ({format_size(self._settings.large_from_bytes)}): "
                        'raise that, or say data.large = "git"',
                    )
                yield inside, path


@dataclass(frozen=True)
class _Held:
    spec: Any


def _code_of(spec: Any) -> Code:
    commit = spec.env.get(COMMIT, "")
    script = str(spec.argv[0]) if spec.argv else ""
    if commit:
        # It came from a folder of that name, which is nobody's business.
        script = script.rpartition(f"/{commit}/")[2]
    return Code(commit=commit, script=script)


def _asked(spec: Any) -> dict[str, Any]:
    """The resources of a request, without what it did not say."""
    found: dict[str, Any] = msgspec.to_builtins(spec.resources)
    found |= {"walltime_s": spec.walltime_s, "nodes": spec.node_count if spec.node_count > 1 else None}
    return {name: value for name, value in found.items() if value not in (None, 0, [], {}, "")}


def _metrics(path: Path) -> dict[str, Any]:
    """What an execution reported; nothing where that is no JSON object, or too much of one."""
    try:
        found = json.loads(read_small(str(path)) or b"{}")
    except OSError as error:
        raise StorageError("this machine", str(path), error.errno or 0, "reading metrics") from error
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
