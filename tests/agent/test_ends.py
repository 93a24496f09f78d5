"""How executions end: cancelled, paused, out of time, out of memory, and with processes that would rather stay."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from liborch.agent import node as _node
from tests.agent.harness import Node, alive, until

STUBBORN = "trap '' TERM INT HUP; "
#: Forgets session, parent and mark, keeps its output open.
HIDE = "env -i PATH=$PATH setsid sh -c"


def ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def test_cancelling_ends_everything_wherever_it_stands(node: Node) -> None:
    client = node.client(cpus=2)
    client.sh("running", "sleep 300 & sleep 300")
    client.sh("paused", "sleep 300 & sleep 300")
    client.sh("queued", "echo never")
    client.event("started", "paused")
    client.tell("pause", "paused")
    client.event("paused", "paused")
    client.tell("cancel", "queued", "running", "paused")
    for x in ("running", "queued", "paused"):
        end = client.ended(x)
        assert (end["reason"], end["code"]) == ("cancelled", None)
        assert node.marked(x) == []
    # And once more, for what has ended and for what nobody knows by now.
    client.tell("cancel", "running", "paused")
    client.settle()
    assert client.count("ended", "running") == client.count("ended", "paused") == 1
    assert client.settle()["room"]["used_cpus"] == 0


def test_one_that_ignores_term_is_killed_after_the_grace_with_children_and_daemons(node: Node) -> None:
    client = node.client()
    client.sh(
        "x", f"{STUBBORN} setsid sleep 300 & (sleep 300 & sleep 300 &) ; sleep 300; sleep 300", grace=0.3
    )
    client.event("started", "x")
    until("its children", lambda: len(node.marked("x")) >= 4)
    begun = time.monotonic()
    client.tell("cancel", "x")
    end = client.ended("x")
    assert 0.25 < time.monotonic() - begun < 3.3
    assert (end["reason"], end["signal"]) == ("cancelled", 9)
    assert node.marked("x") == []


def test_a_cancelled_one_that_goes_at_once_does_not_wait_for_the_grace(node: Node) -> None:
    client = node.client()
    client.sh("x", "trap 'exit 4' TERM; (trap 'sleep 0.2; exit' TERM; sleep 300 & wait) & wait", grace=60)
    client.event("started", "x")
    client.tell("cancel", "x")
    end = client.ended("x", patience_s=10)
    assert (end["reason"], end["code"]) == ("cancelled", 4)


def test_a_second_cancel_may_shorten_the_grace(node: Node) -> None:
    client = node.client()
    client.sh("x", STUBBORN + "sleep 300; sleep 300", grace=600)
    client.event("started", "x")
    client.tell("cancel", "x")
    client.tell("cancel", "x", grace=0)
    assert client.ended("x")["signal"] == 9


def test_other_processes_of_the_same_person_survive_every_clean_up(node: Node) -> None:
    bystander = subprocess.Popen(["sleep", "300"], start_new_session=True)
    try:
        client = node.client()
        client.sh("x", "setsid sleep 300 & sleep 300")
        client.event("started", "x")
        client.tell("cancel", "x")
        client.ended("x")
        node.replace_keeper(client)
        client.run("true", "y")
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_walltime_is_kept_by_the_node_with_the_client_away(node: Node) -> None:
    client = node.client("me")
    client.sh("x", "sleep 300", wall=0.5)
    client.settle()
    client.close()
    until("its end", lambda: any(line[2:4] == ["ended", "x"] for line in node.log() if line[0] != "A"))
    end = node.client("me").ended("x")
    assert end["reason"] == "walltime"
    assert 0.5 <= end["dur"] < 1.5
    assert "0.5 s" in end["why"]


def test_a_pause_stops_every_process_and_does_not_count_against_the_walltime(node: Node) -> None:
    client = node.client()
    busy = f"{sys.executable} -S -c 'while True: pass'"
    client.sh("x", f"setsid {busy} & {busy}", wall=1.5)
    client.event("started", "x")
    until("both", lambda: len(node.marked("x")) == 3)
    client.tell("pause", "x")
    client.tell("pause", "x")
    client.event("paused", "x")
    pids = node.marked("x")
    before = [ticks(pid) for pid in pids]
    time.sleep(0.5)
    assert [ticks(pid) for pid in pids] == before
    assert client.settle()["runs"][0]["paused"] is True
    client.tell("resume", "x")
    client.event("resumed", "x")
    end = client.ended("x")
    assert (client.count("paused"), client.count("resumed")) == (1, 1)
    assert end["reason"] == "walltime"
    assert end["dur"] >= 2.0
    client.tell("pause", "x")
    client.tell("resume", "x")
    client.settle()
    assert client.count("paused") == 1


def test_the_end_is_that_of_the_main_process_not_of_the_pipe(node: Node) -> None:
    client = node.client()
    end = client.run("sleep 300 & exit 7")
    assert (end["code"], end["reason"]) == (7, "exit")
    assert end["dur"] < 2
    until("nothing left", lambda: not client.settle()["runs"])
    assert node.marked("x") == []


@pytest.mark.parametrize(
    "how",
    [
        "setsid ./daemon &",
        "(setsid sh -c './daemon & ./daemon' &)",
        "nohup ./daemon >/dev/null 2>&1 &",
        f"({HIDE} './daemon; echo late' &)",
        f"({HIDE} './daemon & ./daemon & wait' &)",
        f"({HIDE} './daemon >/dev/null 2>&1 & exec >/dev/null 2>&1; ./daemon' &)",
    ],
)
def test_a_daemon_is_ended_however_it_hides(node: Node, how: str) -> None:
    daemon = node.home / "daemon"
    daemon.write_text("#!/bin/sh\necho $$ >> pids\nexec sleep 300\n")
    daemon.chmod(0o755)
    client = node.client(cpus=2)
    client.sh("other", "sleep 300")
    client.event("started", "other")
    end = client.run(f"echo done; {how}\nuntil [ -s pids ]; do sleep 0.01; done", "x")
    assert (end["out"], end["code"]) == ("done\n", 0)
    until("only the other left", lambda: [run["x"] for run in client.settle()["runs"]] == ["other"])
    # One that shows nothing of where it came from may be the other's: it goes with that at the latest.
    client.tell("cancel", "other")
    client.ended("other")
    pids = [int(line) for line in (node.home / "pids").read_text().split()]
    until("its end", lambda: not any(alive(pid) for pid in pids))


def test_survivors_stay_when_that_was_asked_for(node: Node) -> None:
    client = node.client()
    end = client.run("setsid sleep 300 & echo $!", "x", keep=True)
    pid = int(end["out"])
    for n in range(3):
        client.run("sleep 0.01 & true", f"y{n}")
    assert alive(pid)
    until("the slots to be free", lambda: client.settle()["runs"] == [])
    os.kill(pid, signal.SIGKILL)


def test_no_zombies_stay(node: Node) -> None:
    client = node.client()
    for n in range(5):
        client.run("for i in 1 2 3; do (setsid true &); done; (true &); true", f"x{n}")

    def zombies() -> list[str]:
        keeper = node.pid("keeper")
        words = Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()
        return [pid for pid in words if not alive(int(pid))]

    until("no zombies", lambda: not zombies())


def test_a_stopped_one_can_be_cancelled(node: Node) -> None:
    client = node.client()
    client.sh("x", "kill -STOP $$; sleep 300")
    client.event("started", "x")
    client.tell("cancel", "x")
    assert client.ended("x")["signal"] == 15


def test_too_much_memory_is_told_from_evidence(node: Node) -> None:
    client = node.client()
    hog = [sys.executable, "-S", "-c", "x = bytearray(300 << 20); import time; time.sleep(60)"]
    client.order(("x", {"argv": hog, "mem": 60 << 20}))
    end = client.ended("x")
    assert (end["reason"], end["signal"]) == ("oom", 9)
    assert "62914560 bytes" in end["why"]
    assert end["means"][0] in ("memory:cgroup-v1", "memory:cgroup-v2", "memory:watching")
    # 137 and signal 9 alone are no evidence.
    assert client.run("exit 137", "y", mem=60 << 20)["reason"] == "exit"
    assert client.run("kill -9 $$", "z", mem=60 << 20)["reason"] == "signal"
    # Who goes on without it and says that all is well is believed, and it is told.
    if "cgroup" in end["means"][0]:
        client.sh("v", f"{sys.executable} -S -c 'x = bytearray(300 << 20)'; exit 0", mem=60 << 20)
        end = client.ended("v")
        assert (end["reason"], end["code"]) == ("exit", 0)
        assert "a process of it was killed: over its 62914560 bytes" in end["why"]
    # A limit of one execution is not the next one's.
    client.order(("w", {"argv": [sys.executable, "-S", "-c", "x = bytearray(100 << 20)"], "mem": 400 << 20}))
    assert client.ended("w")["code"] == 0


def test_a_command_that_is_not_there_says_so_also_behind_a_memory_limit(node: Node) -> None:
    client = node.client()
    for x, argv in (("a", ["/no/such"]), ("b", ["nosuch"])):
        client.order((x, {"argv": argv, "mem": 1 << 28}))
        assert client.ended(x)["code"] == 127


def test_cores_are_bound_as_recorded(node: Node) -> None:
    client = node.client(cpus=2)
    client.order(
        (
            "x",
            {
                "argv": ["sh", "-c", "grep Cpus_allowed_list /proc/self/status; echo $OMP_NUM_THREADS"],
                "cpus": 1,
            },
        )
    )
    end = client.ended("x")
    assert "cpus:affinity" in end["means"]
    allowed, threads = end["out"].split()[1:]
    assert _node.parse_cpu_list(allowed) == end["cores"]
    assert threads == "1"
    # The next one without a wish may run anywhere again.
    free = client.run("grep Cpus_allowed_list /proc/self/status", "y")["out"].split()[1]
    assert set(_node.parse_cpu_list(free)) == os.sched_getaffinity(0)


@pytest.mark.parametrize(
    ("text", "cpus"), [("0-3,8\n", [0, 1, 2, 3, 8]), ("", []), ("5", [5]), ("0,2-3", [0, 2, 3])]
)
def test_lists_of_cpus_are_read(text: str, cpus: list[int]) -> None:
    assert _node.parse_cpu_list(text) == cpus


def test_ids_of_gpus_reach_the_execution_and_no_two_get_the_same(node: Node) -> None:
    stub = node.home / "bin"
    stub.mkdir()
    (stub / "nvidia-smi").write_text("#!/bin/sh\necho GPU-aaaa\necho GPU-bbbb\n")
    (stub / "nvidia-smi").chmod(0o755)
    node.environment["PATH"] = f"{stub}:{node.environment['PATH']}"
    client = node.client(cpus=4)
    assert client.attached["room"]["gpus"] == ["GPU-aaaa", "GPU-bbbb"]
    for x in ("a", "b", "c"):
        client.sh(x, "echo $CUDA_VISIBLE_DEVICES $ROCR_VISIBLE_DEVICES; sleep 0.3", gpus=1)
    seen = [client.ended(x) for x in ("a", "b", "c")]
    assert {end["out"] for end in seen[:2]} == {"GPU-aaaa GPU-aaaa\n", "GPU-bbbb GPU-bbbb\n"}
    assert "gpus:variables" in seen[0]["means"]
    assert seen[2]["start"] >= min(end["start"] + end["dur"] for end in seen[:2]) - 0.01
    client.sh("many", "true", gpus=3)
    assert "this node has" in client.event("refused", "many")["why"]


def test_two_agents_with_the_very_same_execution_leave_each_others_alone(
    make_node: Callable[..., Node],
) -> None:
    one, two = make_node(), make_node()
    first, second = one.client("me"), two.client("me")
    for client in (first, second):
        client.sh("x", "setsid sleep 300 & sleep 300")
        client.event("started", "x")
    first.tell("cancel", "x")
    assert first.ended("x")["reason"] == "cancelled"
    one.replace_keeper(first)
    second.settle()
    assert (one.marked("x"), len(two.marked("x"))) == ([], 3)
    assert second.count("ended") == 0
