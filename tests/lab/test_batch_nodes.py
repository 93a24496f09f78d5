"""`runaway batch --nodes`: one execution on several nodes at once, over real links."""

from __future__ import annotations

import json
import signal

import pytest

from tests.cli.person import Person, wait_until
from tests.lab.hosts import Lab

pytestmark = pytest.mark.lab

#: The ranks find each other by what their environment says, and add up what each has.
MEET = """
import os, socket, sys, time
rank, size = int(os.environ["RUNAWAY_RANK"]), int(os.environ["RUNAWAY_WORLD_SIZE"])
where = os.environ["RUNAWAY_MASTER_ADDRESS"], int(os.environ["RUNAWAY_MASTER_PORT"])
assert (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])) == where
mine = 10 ** rank
if rank == 0:
    with socket.create_server(("", where[1])) as server:
        others = [server.accept()[0] for _ in range(size - 1)]
        total = mine + sum(int(other.recv(100)) for other in others)
        for other in others:
            other.sendall(b"%d" % total)
else:
    deadline = time.monotonic() + 30
    while True:
        try:
            other = socket.create_connection(where, timeout=5)
            break
        except OSError:
            assert time.monotonic() < deadline, where
            time.sleep(0.1)
    other.sendall(b"%d" % mine)
    total = int(other.recv(100))
print(os.environ["RUNAWAY_NODES"], rank, sys.argv[1])
open("total", "w").write(str(total))
"""


def test_ranks_meet_and_each_ones_results_come_home(three: tuple[Lab, Person]) -> None:
    lab, person = three
    person.write("meet.py", MEET)
    person.write("run.sh", 'exec python3 meet.py "$1"\n')
    person.write("outputs", "out/a\nout/b\n")
    done = person.run(
        "batch", "h1,h2,h3", "run.sh", "--nodes", "3", "--slots", "1", "-O",
        "outputs", "--grid", "x=a,b", "--", "{x}"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    for x in "ab":
        for rank, folder in enumerate(("", "rank1", "rank2")):
            place = person.folder / "out" / x / folder
            assert (place / "total").read_text() == "111"
            assert (place / "stdout").read_text() == f"h1 h2 h3 {rank} {x}\n"
            assert (place / "ecode").read_text() == "0\n"
    for name in ("h1", "h2", "h3"):
        assert not lab.host(name).path("/root/orchestra").exists()
    assert b"2 succeeded" in done.stderr


def test_a_rank_that_fails_ends_the_others_and_all_are_tried_again(three: tuple[Lab, Person]) -> None:
    lab, person = three
    person.write("run.sh", "if [ $RUNAWAY_RANK = 1 ]; then echo no >&2; exit 7; fi; exec sleep 600\n")
    done = person.run(
        "batch", "h1,h2", "run.sh", "-N", "2", "--retries", "1", "--retry-on", "exit:7", "--json", "-o", "out"
    )  # fmt: skip
    assert done.returncode == 1
    (end,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert (end["state"], end["exit_code"], end["attempts"]) == ("failed", 7, 2), end
    assert end["why"] == "rank 1 on h2 ended first"
    # Rank 0 may have been ended before it started.
    assert ("h2", "failed") in [(each["node"], each["state"]) for each in end["ranks"]]
    assert (person.folder / "out" / "ecode").read_text() == "7\n"
    assert (person.folder / "out" / "rank1" / "stderr").read_text() == "no\n"
    for name in ("h1", "h2"):
        assert not lab.host(name).pids_matching("sleep 600")
    shown = person.run("show", end["id"]).stdout.decode()
    assert "h2: failed (exit 7)" in shown
    assert "on 2 nodes" in shown


def test_more_nodes_than_there_are_is_said_before_anything_starts(three: tuple[Lab, Person]) -> None:
    _lab, person = three
    done = person.run("batch", "h1,h2", "/bin/true", "--nodes", "3")
    assert done.returncode == 2
    assert b"--nodes 3: h1,h2 has 2, h1, h2" in done.stderr


def test_a_client_that_is_killed_meanwhile_loses_no_rank(three: tuple[Lab, Person]) -> None:
    lab, person = three
    person.write(
        "run.sh",
        "until [ -e /root/go ]; do sleep 0.1; done; echo $RUNAWAY_RANK > mine; head -c 20000 /dev/zero\n",
    )
    with person.start("batch", "h1,h2", "run.sh", "-N", "2", "-o", "out") as batch:
        for name in ("h1", "h2"):
            wait_until(f"its start on {name}", lambda name=name: lab.host(name).pids_matching("run.sh"))  # type: ignore[misc]
        # One has ended when the client goes, the other has not.
        lab.host("h2").path("/root/go").touch()
        wait_until("its end", lambda: not lab.host("h2").pids_matching("run.sh"))
        batch.send_signal(signal.SIGKILL)
    lab.host("h1").path("/root/go").touch()
    done = person.run("batch", "h1,h2", "run.sh", "-N", "2", "-o", "out", "--resume")
    assert done.returncode == 0, done.stderr.decode()
    for rank, folder in enumerate(("", "rank1")):
        place = person.folder / "out" / folder
        assert (place / "mine").read_text() == f"{rank}\n"
        assert (place / "stdout").stat().st_size == 20000
