"""Seeing a batch through: feeding, counting, Ctrl-C, the end. For who begins one, and for who goes on with one.

going    executions are submitted as room comes
draining nothing new starts, what runs goes on: the first Ctrl-C, or too many failures
ending   what runs is ended as well: the second Ctrl-C, too many failures with --halt now, `runaway kill`, after which nothing
         is left to go on with
left     everything goes on without us: the third Ctrl-C, a closed terminal
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

from liborch.command_line import CLOSED_PIPE
from liborch.core import events as ev
from liborch.core.policy import Policy
from liborch.drive.driver import Driver
from liborch.drive.execution import Execution
from liborch.drive.feeding import Feeder
from liborch.drive.results import Result
from liborch.errors import OrchestraError, StorageError
from liborch.places import Places
from runaway.background import Background, log_path
from runaway.batches.following import Follower
from runaway.batches.outcomes import Outcomes
from runaway.batches.post import PostCommands
from runaway.batches.progress import Progress
from runaway.messages import Messages
from runaway.records import SCHEMA_VERSION
from runaway.seeing import narrate_cluster, of_node

#: Ending what runs may take so long, in seconds, before we leave.
ENDING_S = 30.0
#: A host that was never reached is given up after so many tries; the others carry the batch.
FIRST_ATTEMPTS = 5
#: What is on a node out of reach for so long is done elsewhere, in seconds.
GIVE_UP_S = 1800.0

State = Literal["going", "draining", "ending", "left"]


class Batch:
    """One batch as this client drives it.

    Args:
        batch_id: Its orchestration.
        cwd: What relative output folders are relative to.
        count: How many executions there are in all, as far as known.
        max_failures: Stop when so many have failed.
        halt: What stopping means.
        give_up_s: What is on a node out of reach for so long is done elsewhere, if there is another.
        post_s: A post command that takes longer is ended; None: none is.
        as_json: Tell each end as a line of JSON.
        title: What it is a batch of.
        follow: Print what executions write, while they do.
        background: Go there once all of it is on record and a node can be used; its id is printed then.
    """

    def __init__(
        self,
        batch_id: str,
        messages: Messages,
        folders: Places,
        cwd: Path,
        *,
        count: int,
        max_failures: int | None = None,
        halt: str = "soon",
        give_up_s: float = GIVE_UP_S,
        post_s: float | None = None,
        as_json: bool = False,
        title: str = "",
        follow: bool = False,
        background: Background | None = None,
    ) -> None:
        self.id = batch_id
        self.state: State = "going"
        draws = not follow and background is None and not (as_json and sys.stdout.isatty())
        self.progress = Progress(count, messages, title=title, draws=draws)
        self._background = background
        self._log = log_path(folders.state, batch_id)
        self._messages = messages
        self._max_failures = max_failures
        self._halt = halt
        self._policy = Policy(first_attempts=FIRST_ATTEMPTS, give_up_s=give_up_s)
        self._as_json = as_json
        # In the background only its id is for programs.
        self._tells_ends = as_json and background is None
        self._outcomes = Outcomes(folders.state / "outputs", cwd)
        self._posts = PostCommands(self._outcomes, cwd, self.progress.count_post, post_s)
        self.progress.posts = self._posts
        self._left: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._driver: Driver | None = None
        self._interrupted = False
        #: Nobody reads our stdout any more.
        self._broken = False
        #: All of it is to end: what waits is withdrawn.
        self._killed = False
        loop = asyncio.get_running_loop()
        self._follower = None
        if follow:
            outputs = folders.state / "outputs"
            broken = partial(loop.call_soon_threadsafe, self._break)
            self._follower = Follower(dict(os.environ), outputs, broken)
        self._told_down: set[str] = set()
        #: Their ends are not counted.
        self._disregarded: set[str] = set()

    def options_for_driver(self) -> dict[str, Any]:
        """What the driver is made with."""
        return {
            "listener": self._hear,
            "before_record": self._ended,
            "afterwards": self._posts,
            "policy": self._policy,
            # Nobody looks at each of a thousand ends: none is over without its results.
            "waits_for_room": True,
        }

    async def see_through(
        self,
        driver: Driver,
        enter: Callable[[Feeder], Coroutine[Any, Any, None]],
        *,
        first: int = 1,
        kill: bool = False,
    ) -> int:
        """Drive it to its end, or until the person wants otherwise; returns the exit status.

        Args:
            enter: Completes the plan, and tells the feeder.
            first: Number of the first execution that is not submitted yet.
            kill: End it.

        Raises:
            OrchestraError: The driver cannot go on.
        """
        self._driver = driver
        driver.has_plan = True
        feeder = Feeder(driver, self.id, first)
        self._feeder = feeder
        driver.end_all = self.kill
        driver.describe_more = self._posts.describe
        if self._follower is not None:
            # Those that run already tell no start any more.
            for x, execution in driver.executions.items():
                if execution.state in ("running", "paused"):
                    driver.follow(x, self._follower.writer(x))
        if kill:
            self.kill()
        work = asyncio.ensure_future(self._work(driver, feeder, enter))
        showing = asyncio.ensure_future(self.progress.keep_showing(driver))
        try:
            with self._signals():
                await asyncio.wait([work, self._left], return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                driver.detached = True
                self._say_left()
                return CLOSED_PIPE if self._broken else 130
            work.result()
        finally:
            work.cancel()
            showing.cancel()
            await asyncio.gather(work, showing, return_exceptions=True)
            await self.close()
        return await self._conclude(driver)

    def disregard(self, executions: Iterable[str]) -> None:
        """These are no longer wanted: how they end is not told."""
        self._disregarded.update(executions)

    async def close(self) -> None:
        """End the post commands that run. Fine when it is done already."""
        await self._posts.close()

    async def _work(
        self, driver: Driver, feeder: Feeder, enter: Callable[[Feeder], Coroutine[Any, Any, None]]
    ) -> None:
        entering = asyncio.ensure_future(enter(feeder))
        leaving = asyncio.ensure_future(self._go_to_background(driver, entering))
        try:
            await feeder.run()
            if self._killed:
                entering.cancel()
            await asyncio.wait([entering])
            if not entering.cancelled():
                entering.result()
            if self.state == "going":
                # It may have waited for something to happen when all was over already.
                driver.post(ev.Tick())
                await leaving
        except OrchestraError:
            # All of the plan is on record, for whoever goes on.
            await entering
            driver.detached = True
            self._say_left()
            raise
        finally:
            entering.cancel()
            leaving.cancel()
            await asyncio.gather(entering, leaving, return_exceptions=True)
        driver.has_plan = not feeder.is_done
        if self._killed:
            await self._withdraw(driver)
        while driver.executions and not self._is_drained(driver):
            await driver.turned()
        if not driver.executions:
            await driver.wait_idle()

    async def _go_to_background(self, driver: Driver, entering: asyncio.Future[None]) -> None:
        """Whoever began it may go: what is not on record yet, and what is wrong with the hosts, is still theirs."""
        if self._background is None:
            return
        await asyncio.wait([entering])
        while not driver.is_linked and not (self._feeder.is_done and not driver.executions):
            await driver.turned()
        if self.state != "going":
            return
        if self._as_json:
            said = json.dumps(
                {"schema_version": SCHEMA_VERSION, "kind": "batch", "id": self.id, "log": str(self._log)}
            )
        else:
            said = self.id
        self._messages.stage(
            f"{self.id[:8]} goes on in the background; look at it: runaway attach {self.id[:8]}"
        )
        try:
            self._background.let_go(self._messages, self._log, said)
        except StorageError as error:
            self._messages.error(f"{error}; so it stays in the foreground")

    async def _withdraw(self, driver: Driver) -> None:
        """Nothing is fed any more: what was planned never starts, nor does what waits."""
        for x in driver.executions:
            driver.post(ev.CancelAsked(x))
        while count := await driver.ask_journal(lambda journal: journal.withdraw(self.id, time.time())):
            self.progress.ended["cancelled"] += count
        driver.has_plan = False

    def _is_drained(self, driver: Driver) -> bool:
        """What is left is left to the next client: it waits, or its post command was ended with us."""
        core = driver.core
        # Not of what the core knows: what it knows to be over may not be on record yet.
        left = len(driver.executions)
        return core.draining and core.counts["WAITING"] + len(self._posts.abandoned) == left

    async def _conclude(self, driver: Driver) -> int:
        progress = self.progress
        remains = driver.has_plan or bool(driver.executions)
        if self._follower is not None:
            self._follower.close()
        progress.show_end()
        if remains:
            driver.detached = driver.is_drained = True
            self._say_left()
        else:
            await driver.sweep()
            if driver.untidy:
                names = ", ".join(sorted(driver.untidy))
                self._messages.error(
                    f"what was sent to {names} is still there; once it can be reached: runaway attach {self.id[:8]}"
                )
        if self._interrupted:
            return 130
        is_whole = progress.all_succeeded and not progress.failed_posts and not progress.unwritten
        return 0 if is_whole and not remains else 1

    def _say_left(self) -> None:
        short = self.id[:8]
        text = self.progress.describe_rest()
        self._messages.error(f"{text}; go on: the same command with --resume, or runaway attach {short}")

    # ------------------------------------------------------------------ what happens

    async def _ended(self, ended: list[tuple[Execution, Result]]) -> None:
        """Called before their ends are on record."""
        for error in await self._outcomes(ended):
            self.progress.unwritten += 1
            self._messages.error(str(error))
        for execution, result in ended:
            if execution.id in self._disregarded:
                continue
            self.progress.count(execution, result)
            if self._follower is not None:
                self._follower.ended(execution.id, result)
            if self._tells_ends:
                from runaway.seeing import result_as_dict

                line = {**result_as_dict(result), "parameters": execution.spec.parameters}
                try:
                    print(json.dumps(line), flush=True)
                except OSError:
                    self._break()
        most = self._max_failures
        if most is not None and self.progress.failed >= most and self.state == "going":
            self.progress.too_many = True
            self._messages.error(f"{self.progress.failed} have failed: stopping")
            self._drain()
            if self._halt == "now":
                self._end_all()

    def _hear(self, what: str, x: str, fields: dict[str, Any]) -> None:
        if what in ("unreachable", "lost"):
            target = self._driver.targets.get(fields["node"]) if self._driver is not None else None
            if target is not None and target.closed:
                return
            if fields["node"] not in self._told_down:
                self._told_down.add(fields["node"])
                goes_on = "; what runs there goes on, connecting again" if what == "lost" else ""
                self._messages.stage(f"{of_node(fields['node'], fields['why'])}{goes_on}")
        elif what == "linked":
            if fields["node"] in self._told_down:
                self._told_down.discard(fields["node"])
                self._messages.stage(f"{fields['node']}: connected again")
            else:
                self._messages.detail(f"connected to {fields['node']}")
        elif what == "started":
            if self._follower is not None and self._driver is not None:
                self._driver.follow(x, self._follower.writer(x))
        elif what == "retry":
            self._messages.detail(
                f"{x[:8]}: attempt {fields['attempt']} ended ({fields['reason']}); another one follows"
            )
        elif what in ("trouble", "stalled"):
            self._messages.error(f"{x[:8]}: {fields['why']}" if x else str(fields["why"]))
        elif what == "recovered":
            self._messages.stage("there is room again; going on")
        else:
            narrate_cluster(self._messages, what, fields)

    # ------------------------------------------------------------------ signals

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self._interrupt)
        for number in (signal.SIGHUP, signal.SIGTERM):
            loop.add_signal_handler(number, self._leave)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
                loop.remove_signal_handler(number)
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _interrupt(self) -> None:
        self._interrupted = True
        if self.state == "going":
            self._messages.error(
                "nothing new is started, what runs will finish; Ctrl-C again ends it, a third time leaves it running and ends this command"
            )
            self._drain()
        elif self.state == "draining":
            self._messages.error("ending what runs; Ctrl-C again leaves at once")
            self._end_all()
        else:
            self._leave()

    def kill(self) -> None:
        """End all of it: what runs, what waits, and what is planned. Fine at any time."""
        if not self._killed and self.state != "left":
            self._killed = True
            self._messages.error("all of it was asked to end")
            self._drain()
            self._end_all()

    def _drain(self) -> None:
        assert self._driver is not None
        self.state = "draining"
        self._feeder.stop()
        self._driver.post(ev.Draining())

    def _end_all(self) -> None:
        assert self._driver is not None
        self.state = "ending"
        for x, item in self._driver.core.items.items():
            if item.state != "WAITING" or self._killed:
                self._driver.post(ev.CancelAsked(x))
        asyncio.get_running_loop().call_later(ENDING_S, self._leave)
        self._ending = asyncio.ensure_future(self._end_posts(self._driver))

    async def _end_posts(self, driver: Driver) -> None:
        await self._posts.close(for_good=self._killed)
        # That they are over is no event; the driver is to look once more.
        driver.post(ev.Tick())

    def _break(self) -> None:
        """Whoever read our stdout has gone: what runs goes on without us."""
        if not self._broken:
            self._broken = True
            self._tells_ends = False
            self._messages.error("stdout was closed")
            self._leave()

    def _leave(self) -> None:
        if not self._left.done():
            self.state = "left"
            self._left.set_result(None)
