"""What every AgentLink must do, told as stories against one that is open: the same for the real agent and the fallback."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from liborch.drive.link import AgentLink

# ruff: noqa: ASYNC240 - looking at /proc

#: Enough for a slow machine; nothing below waits for time to pass.
PATIENCE_S = 20.0


class Client:
    """An orchestration's end of a link: remembers every event."""

    def __init__(self, link: AgentLink, owner: str | None = None) -> None:
        self.link = link
        self.owner = owner or uuid.uuid4().hex
        self.events: list[list[Any]] = []
        self.attached: dict[str, Any] = {}
        self.lost: str | None = None
        self._news = asyncio.Event()

    async def attach(self, ack: int = 0, **capacity: int) -> Client:
        """Take part; returns once attached."""
        await self.link.attach(
            self.owner, ack, capacity, self._on_events, self._on_attached, self._on_lost, expand=["$HOME/x"]
        )
        await self.until(lambda: self.attached or None)
        return self

    def _on_events(self, events: list[list[Any]]) -> None:
        self.events += events
        self._news.set()

    def _on_attached(self, head: dict[str, Any]) -> None:
        self.attached = head
        self._news.set()

    def _on_lost(self, why: str) -> None:
        self.lost = why
        self._news.set()

    async def until(self, found: Callable[[], Any]) -> Any:
        """Return the first thing that `found` finds."""
        async with asyncio.timeout(PATIENCE_S):
            while (what := found()) is None:
                assert self.lost is None, self.lost
                self._news.clear()
                await self._news.wait()
        return what

    async def until_somewhere(self, true: Callable[[], bool]) -> None:
        """Wait for something that no event tells."""
        async with asyncio.timeout(PATIENCE_S):
            while not true():
                await asyncio.sleep(0.02)

    def order(self, *argv: str, attempt: int = 1, x: str | None = None, **own: Any) -> str:
        """Hand over a command; returns its id."""
        x = x or uuid.uuid4().hex
        self.link.order({"node": "n"}, [(x, attempt, {"argv": list(argv), **own})])
        return x

    async def event(self, kind: str, x: str) -> list[Any]:
        """Wait for an event of an execution."""

        def found() -> list[Any] | None:
            return next((e for e in self.events if e[2] == kind and e[3] == x), None)

        event: list[Any] = await self.until(found)
        return event

    async def ended(self, x: str) -> dict[str, Any]:
        """Wait for a verdict."""
        detail: dict[str, Any] = (await self.event("ended", x))[5]
        return detail

    async def run(self, *argv: str, **own: Any) -> dict[str, Any]:
        """Hand over a command and wait for its verdict."""
        return await self.ended(self.order(*argv, **own))

    async def output(self, x: str, final: dict[str, int] | None = None) -> tuple[bytes, bytes]:
        """Follow an execution's output to its end."""
        fields: dict[str, Any] = {"x": x, "a": 1, "out": 0, "err": 0}
        if final is not None:
            fields["final"] = final
        stream = self.link.open_stream("output", **fields)
        got = {"out": bytearray(), "err": bytearray()}
        try:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    head, body = await stream.receive()
                    if head["t"] == "end":
                        return bytes(got["out"]), bytes(got["err"])
                    assert head["t"] == "data", head
                    sofar = got[head["s"]]
                    assert head["at"] <= len(sofar)
                    sofar += body[len(sofar) - head["at"] :]
        finally:
            await stream.close()


async def exit_codes_come_back_exactly(link: AgentLink) -> None:
    client = await Client(link).attach(cpus=2)
    codes = (0, 1, 2, 126, 127, 128, 130, 137, 143, 255)
    ids = [client.order("sh", "-c", f"exit {code}") for code in codes]
    details = [await client.ended(x) for x in ids]
    assert [(d["reason"], d["code"]) for d in details] == [("exit", code) for code in codes]


async def death_by_a_signal_is_told_from_its_code(link: AgentLink) -> None:
    client = await Client(link).attach()
    by_signal = await client.run("sh", "-c", "kill -9 $$")
    assert (by_signal["reason"], by_signal["signal"], by_signal["code"]) == ("signal", 9, None)


async def arguments_and_variables_arrive_byte_for_byte(link: AgentLink) -> None:
    client = await Client(link).attach()
    words = ("a b", 'c"d', "*", "$HOME", "it's;x", "", "-n", "new\nline\n", "\udcff\udc80", "`id`", "\\")
    detail = await client.run("printf", "%s|", *words)
    assert detail["out"].encode("latin-1").decode("utf-8", "surrogateescape") == "".join(
        f"{w}|" for w in words
    )
    value = "=quote' \"new\nline $HOME `id` \\ \udcff"
    detail = await client.run("sh", "-c", 'printf %s "$V"', env={"V": value, "slot": "mine", "key": "k"})
    assert detail["out"].encode("latin-1").decode("utf-8", "surrogateescape") == value
    detail = await client.run("sh", "-c", "echo $slot $key", env={"slot": "mine", "key": "k"})
    assert detail["out"] == "mine k\n"


async def small_output_travels_with_the_verdict(link: AgentLink) -> None:
    client = await Client(link).attach()
    detail = await client.run("printf", "\\0\\1\\377\\n\\n foo")
    assert (detail["out"], detail["out_size"], "files" in detail) == ("\0\1\xff\n\n foo", 9, False)


async def large_output_is_whole_and_in_order(link: AgentLink) -> None:
    client = await Client(link).attach()
    x = client.order("sh", "-c", "head -c 1000003 /dev/urandom | tee data; cat data >&2", cwd="/tmp")
    detail = await client.ended(x)
    assert detail["files"]
    sizes = {"out": detail["out_size"], "err": detail["err_size"]}
    assert sizes == {"out": 1000003, "err": 1000003}
    out, err = await client.output(x, sizes)
    assert out == err
    assert len(out) == 1000003


async def output_is_followed_while_it_is_written(link: AgentLink) -> None:
    client = await Client(link).attach()
    # It goes on only once somebody has seen its first line, and says so with a file.
    gate = f"/tmp/orchestra-gate-{uuid.uuid4().hex}"
    x = client.order(
        "sh",
        "-c",
        f"echo first; while [ ! -e {gate} ]; do sleep 0.05; done; rm {gate}; echo second",
        live=True,
    )
    stream = link.open_stream("output", x=x, a=1, out=0, err=0)
    head, body = await asyncio.wait_for(stream.receive(), PATIENCE_S)
    assert (head["s"], body) == ("out", b"first\n")
    await client.run("touch", gate)
    rest = b""
    async with asyncio.timeout(PATIENCE_S):
        while (frame := await stream.receive())[0]["t"] == "data":
            rest += frame[1][6 - frame[0]["at"] :] if frame[0]["at"] < 6 else frame[1]
    assert rest == b"second\n"
    await stream.close()


async def an_order_is_started_once_however_often_it_is_handed_over(link: AgentLink) -> None:
    client = await Client(link).attach()
    x = client.order("sh", "-c", "echo started")
    client.order("sh", "-c", "echo started again", x=x)
    detail = await client.ended(x)
    client.order("sh", "-c", "echo started again", x=x)
    await client.run("true")
    assert detail["out"] == "started\n"
    assert [e[2] for e in client.events if e[3] == x].count("ended") == 1


async def cancelling_leaves_no_process(link: AgentLink) -> None:
    client = await Client(link).attach()
    name = f"orchestra-{uuid.uuid4().hex[:8]}"
    script = f"trap '' TERM; setsid sh -c 'sleep 600; : {name}' & sh -c 'trap \"\" TERM; sleep 600; : {name}'"
    x = client.order("sh", "-c", script, grace=0.3)
    await client.event("started", x)
    # Both are there now, so it is no accident when neither is afterwards.
    await client.until_somewhere(
        lambda: len([p for p in Path("/proc").glob("[0-9]*") if name in _command_line(p)]) >= 2
    )
    link.tell("cancel", ids=[(x, 1)])
    detail = await client.ended(x)
    assert detail["reason"] == "cancelled"
    assert not [pid for pid in Path("/proc").glob("[0-9]*") if name in _command_line(pid)]


def _command_line(process: Path) -> str:
    try:
        return (process / "cmdline").read_text(errors="replace")
    except OSError:
        return ""


async def what_is_cancelled_before_it_came_never_starts(link: AgentLink) -> None:
    client = await Client(link).attach()
    x = uuid.uuid4().hex
    link.tell("cancel", ids=[(x, 1)])
    assert (await client.ended(x))["reason"] == "cancelled"
    client.order("sh", "-c", "echo never", x=x)
    await client.run("true")
    assert [e[2] for e in client.events if e[3] == x] == ["ended"]


async def what_waits_is_recalled(link: AgentLink) -> None:
    client = await Client(link).attach(cpus=1)
    first = client.order("sleep", "600", grace=0.1)
    second = client.order("true")
    await client.event("started", first)
    link.tell("recall", ids=[(second, 1), (first, 1)])
    await client.event("recalled", second)
    link.tell("cancel", ids=[(first, 1)])
    await client.ended(first)
    assert not [e for e in client.events if e[3] == second and e[2] == "ended"]


async def what_was_recalled_and_comes_again_is_the_last_in_the_queue(link: AgentLink) -> None:
    client = await Client(link).attach(cpus=1)
    first = client.order("sleep", "600", grace=0.1)
    second = client.order("true")
    third = client.order("true")
    await client.event("started", first)
    link.tell("recall", ids=[(second, 1)])
    await client.event("recalled", second)
    client.order("true", x=second)
    link.tell("cancel", ids=[(first, 1)])
    await client.ended(second)
    assert [e[3] for e in client.events if e[2] == "ended"] == [first, third, second]


async def no_more_run_at_once_than_there_are_slots(link: AgentLink) -> None:
    client = await Client(link).attach(cpus=2)
    script = "mkdir /tmp/$T.$RUNAWAY_HANDLE_ID || echo two in one slot; sleep 0.1; rmdir /tmp/$T.$RUNAWAY_HANDLE_ID; echo $RUNAWAY_HANDLE_ID"
    tag = uuid.uuid4().hex
    ids = [client.order("sh", "-c", script, env={"T": tag}) for _ in range(5)]
    said = [(await client.ended(x))["out"] for x in ids]
    assert set(said) <= {"0\n", "1\n"}


async def what_asks_for_too_much_is_refused(link: AgentLink) -> None:
    client = await Client(link).attach(cpus=2)
    event = await client.event("refused", client.order("true", cpus=3))
    assert "3 cores" in event[5]["why"]


async def a_walltime_ends_it(link: AgentLink) -> None:
    client = await Client(link).attach()
    detail = await client.run("sleep", "600", wall=0.2, grace=0.2)
    assert detail["reason"] == "walltime"
    assert "walltime" in detail["why"]


async def a_paused_one_makes_no_progress_and_goes_on(link: AgentLink) -> None:
    client = await Client(link).attach(cpus=2)
    file = f"/tmp/orchestra-{uuid.uuid4().hex}"
    x = client.order(
        "sh", "-c", f"while [ ! -e {file}.go ]; do echo >> {file}; sleep 0.02; done; rm {file} {file}.go"
    )
    await client.event("started", x)
    link.tell("pause", ids=[(x, 1)])
    await client.event("paused", x)
    look = (
        f"a=$(wc -c < {file} || echo 0); sleep 0.2; b=$(wc -c < {file} || echo 0); [ $a = $b ] && echo same"
    )
    assert (await client.run("sh", "-c", look))["out"] == "same\n"
    link.tell("resume", ids=[(x, 1)])
    await client.event("resumed", x)
    await client.run("touch", f"{file}.go")
    assert (await client.ended(x))["code"] == 0


async def survivors_do_not_hold_up_the_verdict_and_are_ended(link: AgentLink) -> None:
    client = await Client(link).attach(cpus=1)
    detail = await client.run("sh", "-c", "sleep 600 & echo done; exit 7")
    assert (detail["code"], detail["out"]) == (7, "done\n")
    # The slot comes back only when they are gone.
    await client.run("true")


async def a_slot_is_held_for_one_after_the_other(link: AgentLink) -> None:
    client = await Client(link).attach(cpus=1)
    lease = uuid.uuid4().hex
    link.order({"node": "n"}, [(lease, 1, {"hold": True})])
    held = await client.event("held", lease)
    first = await client.run("sh", "-c", "echo $RUNAWAY_HANDLE_ID", lease=lease)
    second = await client.run("sh", "-c", "echo $RUNAWAY_HANDLE_ID", lease=lease)
    assert first["out"] == second["out"] == f"{held[5]['slot']}\n"
    waiting = client.order("true")
    link.tell("unhold", lease=lease)
    await client.event("unheld", lease)
    assert (await client.ended(waiting))["code"] == 0


async def folders_are_expanded_as_the_login_would(link: AgentLink) -> None:
    client = await Client(link).attach()
    reply = await link.ask("expand", texts=["~", "$HOME/a/../b", "${HOME}x", "/c/$NOTHING_OF_THE_KIND"])
    home = reply["texts"][0]
    assert home.startswith("/")
    assert reply["texts"][1:] == [f"{home}/b", f"{home}x", "/c"]
    assert client.attached["expanded"] == [f"{home}/x"]


async def a_missing_command_or_folder_is_an_end_like_any_other(link: AgentLink) -> None:
    client = await Client(link).attach()
    missing = await client.run("no-such-command-anywhere")
    assert (missing["reason"], missing["code"]) == ("exit", 127)
    nowhere = await client.run("true", cwd="/no/such/folder")
    assert (nowhere["reason"], nowhere["code"]) == ("exit", 127)


#: All of them.
STORIES = (
    exit_codes_come_back_exactly,
    death_by_a_signal_is_told_from_its_code,
    arguments_and_variables_arrive_byte_for_byte,
    small_output_travels_with_the_verdict,
    large_output_is_whole_and_in_order,
    output_is_followed_while_it_is_written,
    an_order_is_started_once_however_often_it_is_handed_over,
    cancelling_leaves_no_process,
    what_is_cancelled_before_it_came_never_starts,
    what_waits_is_recalled,
    what_was_recalled_and_comes_again_is_the_last_in_the_queue,
    no_more_run_at_once_than_there_are_slots,
    what_asks_for_too_much_is_refused,
    a_walltime_ends_it,
    a_paused_one_makes_no_progress_and_goes_on,
    survivors_do_not_hold_up_the_verdict_and_are_ended,
    a_slot_is_held_for_one_after_the_other,
    folders_are_expanded_as_the_login_would,
    a_missing_command_or_folder_is_an_end_like_any_other,
)


async def end_all(link: AgentLink) -> None:
    """Take every execution of a node's agent down, so that a test leaves nothing."""
    with contextlib.suppress(Exception):
        async with asyncio.timeout(5):
            status = await link.ask("status")
            link.tell("cancel", ids=[(run["x"], run["a"]) for run in status["runs"]], grace=0.0)
