"""An order that is on record and never reached its node: whoever drives hands it over again, whoever leaves knows it came."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import liborch
from liborch.drive.adopt import adopting
from liborch.drive.link import FrameLink
from liborch.places import places
from liborch.specs import ExecutionSpec, Transfer
from tests.drive.conftest import Here, assert_quiet


def with_files(folder: Path, *argv: str) -> ExecutionSpec:
    """An execution that has a folder of its own, and brings back what it makes there."""
    results = folder / "results"
    return ExecutionSpec(argv=argv, transfer=Transfer(str(folder), "$RUNAWAY_PATH/own", str(results)))


async def test_an_order_that_never_came_is_handed_over_by_who_takes_over(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(FrameLink, "order", lambda *_: None)
        async with liborch.open_host("local") as host:
            execution = host.submit(with_files(tmp_path, "sh", "-c", "echo made > made.txt; pwd"))
            async with asyncio.timeout(20):
                while execution.ordered is None:
                    await host._driver.turned()
            orchestration = host._driver.orchestration
            host._driver.detached = True
    here.assert_bare()
    async with asyncio.timeout(30), adopting(orchestration, places(None)) as driver:
        result = await driver.executions[execution.id]
    assert (result.state, result.attempts) == ("succeeded", 1)
    assert result.stdout.endswith(b"own\n")
    assert (tmp_path / "results" / "made.txt").read_text() == "made\n"
    await assert_quiet()


async def test_who_leaves_waits_until_the_node_has_the_order_also_when_the_link_broke_over_it(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = FrameLink.order
    links: list[FrameLink] = []

    def breaking(link: FrameLink, *what: Any) -> None:
        links.append(link)
        if len(links) == 1:
            link._pipe.close()
        else:
            order(link, *what)

    monkeypatch.setattr(FrameLink, "order", breaking)
    async with asyncio.timeout(30), liborch.open_host("local") as host:
        execution = host.submit(with_files(tmp_path, "sleep", "1000"))
        await host._driver.wait_handed_over(execution)
        assert links[0] is not links[-1]
        assert here.status()["runs"]
    await assert_quiet()
