"""The dialect of Slurm against a real one: its own commands over ssh, and what Slurm then does."""

from __future__ import annotations

import itertools
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from liborch.batch_systems.base import Accepted, Rejected, Request, Sight, Unclear
from liborch.batch_systems.node_names import expand
from liborch.batch_systems.slurm import Slurm
from tests.lab.machine import wait_until
from tests.lab.slurm import SlurmCluster

pytestmark = pytest.mark.lab

MakeCluster = Callable[..., SlurmCluster]

SLURM = Slurm()
_NUMBERS = itertools.count(1)


def token() -> str:
    """A token that no other test has."""
    return f"tok{next(_NUMBERS):05d}"


def submit(cluster: SlurmCluster, *options: str, login: str = "", **request: object) -> str:
    """Submit an allocation; returns its id."""
    asked = Request(token(), options=options, **request)  # type: ignore[arg-type]
    answer = SLURM.parse_submit(cluster.ask(SLURM.submit(asked), login=login))
    assert isinstance(answer, Accepted), answer
    return answer.id


def look(cluster: SlurmCluster, *ids: str, login: str = "") -> dict[str, Sight]:
    """What Slurm says of ours."""
    answer = SLURM.parse_query(cluster.ask(SLURM.query(ids), login=login))
    assert not isinstance(answer, Unclear), answer
    return answer


def await_state(cluster: SlurmCluster, id: str, state: str, login: str = "") -> Sight:
    """Wait until an allocation is somewhere."""
    seen: list[Sight] = []

    def there() -> bool:
        # Slurm's own pace is a second.
        time.sleep(0.1)
        seen.append(look(cluster, id, login=login)[id])
        return seen[-1].state == state

    wait_until(f"allocation {id} to be {state}", there)
    return seen[-1]


@pytest.fixture
def quiet(slurm_lab: SlurmCluster) -> Iterator[SlurmCluster]:
    """The session's cluster with an empty queue, before and after."""
    slurm_lab.clear()
    yield slurm_lab
    slurm_lab.clear()


@pytest.mark.parametrize("login", ["root", "bob", "kim", "finn"])
def test_an_allocation_is_asked_for_seen_and_given_back_through_any_login_shell(
    quiet: SlurmCluster, login: str
) -> None:
    id = submit(quiet, "--cpus-per-task=2", nodes=2, walltime_s=61, login=login)
    sight = await_state(quiet, id, "active", login)
    assert len(sight.nodes) == 2
    assert set(sight.nodes) < set(quiet.nodes)
    assert sight.left_s is not None
    assert 60 < sight.left_s <= 120, "a walltime of 61 s is two of Slurm's minutes"
    assert (sight.cpus, sight.memory_bytes, sight.gpus) == (2, 1000 << 20, None)
    first = quiet.lab.host(sight.nodes[0])
    wait_until("the holder on the first node", lambda: first.pids_matching("sleep infinity"))
    assert SLURM.parse_cancel(quiet.ask(SLURM.cancel([id, "999999"]), login=login)) is None
    over = await_state(quiet, id, "ended", login)
    assert (over.end, over.why, over.nodes) == ("cancelled", "CANCELLED", ())
    assert SLURM.parse_cancel(quiet.ask(SLURM.cancel([id]), login=login)) is None, "it is over already"


def test_what_cannot_be_is_rejected_in_slurm_s_own_words(quiet: SlurmCluster) -> None:
    for option, words in {
        "--partition=nosuch": "Invalid partition name specified",
        "--constraint=nosuch": "Invalid feature specification",
        "--mem=lots": "Invalid --mem specification",
        "--no-such-option": "unrecognized option",
        "--mem=999G": "Memory specification can not be satisfied",
    }.items():
        request = Request(token(), options=(option,))
        answer = SLURM.parse_submit(quiet.ask(SLURM.submit(request)))
        assert isinstance(answer, Rejected), (option, answer)
        assert words in answer.why
        assert not answer.is_retriable
    assert quiet.queue() == {}


def test_one_that_waits_for_a_person_is_told_apart_from_one_that_waits_for_nodes(quiet: SlurmCluster) -> None:
    first = submit(quiet, "--exclusive", nodes=3)
    await_state(quiet, first, "active")
    waits = submit(quiet)
    too_long = submit(quiet, "--partition=short", walltime_s=7200)
    by_user = submit(quiet, "--hold")
    reasons = {waits: "Resources", too_long: "PartitionTimeLimit", by_user: "JobHeldUser"}
    wait_until("reasons", lambda: {id: look(quiet)[id].why for id in reasons} == reasons)
    seen = look(quiet)
    assert {id: seen[id].state for id in reasons} == {waits: "queued", too_long: "held", by_user: "held"}
    wait_until("an estimate", lambda: look(quiet)[waits].starts_in_s is not None)


def test_banners_and_variables_of_the_person_s_shell_change_nothing(quiet: SlurmCluster) -> None:
    bashrc = quiet.frontend.home_of("bob") / ".bashrc"
    bashrc.write_text(
        "echo Welcome; echo 4711; echo beware >&2; printf 'no line end'\n"
        "export SBATCH_ARRAY_INX=0-3 SBATCH_WAIT=1 SBATCH_JOB_NAME=mine SQUEUE_FORMAT=%i SQUEUE_STATES=CD LC_ALL=de_DE.UTF-8\n"
    )
    try:
        id = submit(quiet, login="bob")
        assert id != "4711"
        assert await_state(quiet, id, "active", login="bob").token.startswith("tok")
        assert list(quiet.queue()) == [id]
    finally:
        bashrc.unlink()


def test_of_a_submission_that_was_killed_there_is_one_allocation_for_its_token_or_none(
    quiet: SlurmCluster,
) -> None:
    outcomes = []
    for milliseconds in (2, 4, 5, 6, 7, 8, 9, 11, 13, 20):
        request = Request(token(), options=("--hold",))
        with quiet.fake("sbatch", f'exec timeout -s KILL 0.{milliseconds:03d} /usr/bin/sbatch "$@"'):
            answer = SLURM.parse_submit(quiet.ask(SLURM.submit(request)))
        assert isinstance(answer, Accepted | Unclear), answer
        # One that was sent may take a moment to be in the queue; the next question cannot overtake it by much.
        same = [id for id, sight in look(quiet).items() if sight.token == request.token]
        if isinstance(answer, Accepted):
            assert same == [answer.id]
        assert len(same) <= 1
        outcomes.append((milliseconds, type(answer).__name__, len(same)))
    assert any(name == "Unclear" for _, name, _ in outcomes), f"nothing was killed in time: {outcomes}"


@pytest.mark.parametrize(
    "instead", ["exit 0", "echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv operation' >&2; exit 1", "sleep 9"]
)  # fmt: skip
def test_a_submission_whose_answer_was_lost_is_found_by_its_token(quiet: SlurmCluster, instead: str) -> None:
    request = Request(token(), options=("--hold",))
    with quiet.fake("sbatch", f'/usr/bin/sbatch "$@" >/dev/null; {instead}'):
        answer = SLURM.parse_submit(quiet.ask(SLURM.submit(request), timeout_s=1))
    assert isinstance(answer, Unclear), answer
    (found,) = [sight for sight in look(quiet).values() if sight.token == request.token]
    assert (found.state, found.why) == ("held", "JobHeldUser")


def test_while_the_controller_is_down_nothing_is_known_and_afterwards_all_is_as_before(
    make_slurm_lab: MakeCluster,
) -> None:
    cluster = make_slurm_lab(1, MessageTimeout=2)
    id = submit(cluster)
    before = await_state(cluster, id, "active")
    cluster.save(id)
    cluster.kill_controller()
    answer = SLURM.parse_query(cluster.ask(SLURM.query([id])))
    assert isinstance(answer, Unclear)
    assert "Unable to contact slurm controller" in answer.why
    cluster.start_controller()
    after = await_state(cluster, id, "active")
    assert (after.nodes, after.restarts) == (before.nodes, before.restarts)


def test_an_id_that_a_controller_gave_twice_has_the_token_of_the_second(make_slurm_lab: MakeCluster) -> None:
    cluster = make_slurm_lab(1)
    first = Request(token(), options=("--hold",))
    answers = [SLURM.parse_submit(cluster.ask(SLURM.submit(first)))]
    # What it had not written down, the id among it, is forgotten by a controller that is killed.
    cluster.forget()
    second = Request(token(), options=("--hold",))
    answers.append(SLURM.parse_submit(cluster.ask(SLURM.submit(second))))
    assert answers == [Accepted("1"), Accepted("1")]
    assert look(cluster, "1")["1"].token == second.token


def test_one_that_is_requeued_keeps_its_id_and_counts_its_starts(quiet: SlurmCluster) -> None:
    id = submit(quiet, "--requeue")
    assert await_state(quiet, id, "active").restarts == 0
    quiet.run(f"scontrol requeue {id}")
    waiting = await_state(quiet, id, "queued")
    assert waiting.why == "BeginTime"
    assert waiting.starts_in_s is not None
    assert waiting.starts_in_s > 60

    # Not at once: within a second, the node still refuses what it was told to end.
    quiet.run(f"scontrol update job={id} StartTime=now+3")
    assert await_state(quiet, id, "active").restarts == 1


def test_one_that_is_preempted_says_so_and_is_not_started_again(quiet: SlurmCluster) -> None:
    low = submit(quiet, "--exclusive", nodes=3)
    await_state(quiet, low, "active")
    high = submit(quiet, "--partition=high", "--exclusive", nodes=3)
    await_state(quiet, high, "active")
    over = await_state(quiet, low, "ended")
    assert (over.end, over.why) == ("preempted", "PREEMPTED")


def test_a_grace_before_preemption_is_seen_as_the_time_that_is_left(make_slurm_lab: MakeCluster) -> None:
    cluster = make_slurm_lab(1, grace_s=60)
    low = submit(cluster, "--exclusive", walltime_s=3600)
    await_state(cluster, low, "active")
    submit(cluster, "--partition=high", "--exclusive")

    def is_warned() -> bool:
        sight = look(cluster)[low]
        return sight.state == "active" and sight.left_s is not None and sight.left_s <= 60

    wait_until("less time", is_warned)


def test_a_node_that_fails_leaves_the_others_of_its_allocation(make_slurm_lab: MakeCluster) -> None:
    cluster = make_slurm_lab(3)
    id = submit(cluster, nodes=3)
    nodes = await_state(cluster, id, "active").nodes
    # The first holds the allocation; how Slurm notices a dead node by itself takes its SlurmdTimeout.
    cluster.run(f"scontrol update nodename={nodes[1]} state=down reason=lab")
    wait_until("two nodes", lambda: look(cluster)[id].nodes == (nodes[0], nodes[2]))
    single = submit(cluster, nodes=1)
    (node,) = await_state(cluster, single, "active").nodes
    cluster.run(f"scontrol update nodename={node} state=down reason=lab")
    assert await_state(cluster, single, "ended").end == "node"


@pytest.mark.soak
def test_one_that_slurm_has_forgotten_is_in_no_answer(make_slurm_lab: MakeCluster) -> None:
    cluster = make_slurm_lab(1, MinJobAge=2)
    id = submit(cluster, holder=("true",))
    wait_until("it forgotten", lambda: id not in look(cluster, id))
    assert look(cluster, id) == {}


def test_a_question_about_many_costs_the_controller_no_more_than_one_about_one(quiet: SlurmCluster) -> None:
    quiet.run(
        "for i in 1 2 3 4 5 6 7 8 9; do sbatch -H -J orch-many000$i -o /dev/null --wrap 'sleep 9' || exit; done"
    )
    ids = list(quiet.queue())
    quiet.run("sbatch -H -J \"$(printf 'not|orch\\nours|orch-')\" -o /dev/null --wrap 'sleep 9'")
    quiet.forget_rpcs()
    spent = quiet.rpcs()
    seen = look(quiet, *ids)
    assert quiet.rpcs() - spent <= 3, "squeue asks for partitions and for jobs; the third is that of counting"
    assert sum(sight.token.startswith("many000") for sight in seen.values()) >= 9


def test_versions_without_separators_are_asked_in_the_old_way(quiet: SlurmCluster) -> None:
    id = submit(quiet, nodes=2)
    new = await_state(quiet, id, "active")
    old = 'case "$*" in *JobID:*) echo JOBIDSTATENODES ;; *) exec /usr/bin/squeue "$@" ;; esac'
    with quiet.fake("squeue", old):
        seen = look(quiet, id)[id]
    assert (seen.state, seen.nodes, seen.cpus) == ("active", new.nodes, new.cpus)
    assert seen.left_s is not None


@pytest.mark.parametrize(
    "script",
    [
        "echo '<html><body>502</body></html>'",
        "exit 0",
        "yes 'x|orch-aaaaaa|' | head -c 3000000",
        "printf '\\033[2J1;rm -rf ~\\n'",
        "echo 'slurm_load_jobs error: Socket timed out on send/recv operation' >&2; exit 1",
        '/usr/bin/squeue "$@" | head -n 2; kill -9 $$',
    ],
)
def test_an_answer_that_is_none_says_nothing(quiet: SlurmCluster, script: str) -> None:
    id = submit(quiet)
    with quiet.fake("squeue", script):
        assert isinstance(SLURM.parse_query(quiet.ask(SLURM.query([id]))), Unclear)
    with quiet.fake("scancel", script.replace("squeue", "scancel")):
        answer = SLURM.parse_cancel(quiet.ask(SLURM.cancel([id])))
        assert answer is None or isinstance(answer, Unclear)
    with quiet.fake("sbatch", script.replace("squeue", "sbatch")):
        assert isinstance(SLURM.parse_submit(quiet.ask(SLURM.submit(Request(token())))), Unclear)


def test_nodes_are_entered_beside_the_holder_by_several_at_once(quiet: SlurmCluster) -> None:
    id = submit(quiet, nodes=2)
    first, second = await_state(quiet, id, "active").nodes
    data = bytes(range(256)) * 512

    def enter(node: str, *argv: str) -> subprocess.Popen[bytes]:
        words = shlex.join(SLURM.enter(id, node, argv))
        return subprocess.Popen(
            ["ssh", "-F", str(quiet.lab.ssh_config), "h1", words],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    echo = enter(second, "cat")
    assert echo.stdin is not None
    assert echo.stdout is not None
    echo.stdin.write(b"\0no line")
    echo.stdin.flush()
    assert echo.stdout.read(8) == b"\0no line", "what has no line end is passed on at once"
    # The echo holds its step open: others come in nevertheless.
    others = [enter(node, "sh", "-c", "hostname; exit 7") for node in (first, second, second)]
    told = [(other.communicate(timeout=30)[0], other.returncode) for other in others]
    assert told == [(f"{node}\n".encode(), 7) for node in (first, second, second)]
    assert echo.communicate(data, timeout=30)[0] == data
    (outside,) = set(quiet.nodes) - {first, second}
    refused = enter(outside, "hostname")
    _, words = refused.communicate(timeout=30)
    assert refused.returncode != 0
    assert b"Unable to create step" in words
    assert look(quiet)[id].state == "active"


def test_what_is_started_in_the_background_of_a_node_ends_with_its_command(
    make_slurm_lab: MakeCluster,
) -> None:
    if not Path("/sys/fs/cgroup/freezer").exists():
        pytest.skip("Slurm's control groups need version 1 of them here")
    cluster = make_slurm_lab(1, confined=True)
    id = submit(cluster)
    (node,) = await_state(cluster, id, "active").nodes
    host = cluster.lab.host(node)
    background = "setsid sleep 4321 </dev/null >/dev/null 2>&1 & sleep 0.2; echo started"
    assert cluster.run(shlex.join(SLURM.enter(id, node, ["sh", "-c", background]))).stdout == "started\n"
    wait_until("the end of what was left", lambda: not host.pids_matching("sleep 4321"))
    assert host.pids_matching("sleep infinity"), "the holder is another step"


def test_limits_are_those_of_the_partition_that_is_asked_for(quiet: SlurmCluster) -> None:
    short = SLURM.parse_limits(quiet.ask(SLURM.limits(["-p", "short"])))
    assert (short.most_walltime_s, short.most_nodes) == (60, 2)
    assert short.sources["most_nodes"] == "partition short: MaxNodes"
    default = SLURM.parse_limits(quiet.ask(SLURM.limits([])))
    assert (default.most_walltime_s, default.most_nodes, default.most_submitted) == (86400, 3, None)


_name = st.from_regex(r"[a-z][a-z0-9]{0,3}-?", fullmatch=True)
_range = st.tuples(st.integers(0, 120), st.integers(0, 12), st.integers(1, 4)).map(
    lambda t: f"{t[0]:0{t[2]}d}-{t[0] + t[1]:0{t[2]}d}" if t[1] else f"{t[0]:0{t[2]}d}"
)
_brackets = st.lists(_range, min_size=1, max_size=3).map(lambda ranges: f"[{','.join(ranges)}]")
_word = st.tuples(
    _name, st.one_of(st.just(""), _brackets, st.tuples(_brackets, _name, _brackets).map("".join))
)
_list = st.lists(_word.map("".join).map(lambda word: word.rstrip("-")), min_size=1, max_size=3).map(",".join)


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(lists=st.lists(_list, min_size=20, max_size=20))
def test_names_of_nodes_are_those_that_scontrol_tells(slurm_lab: SlurmCluster, lists: list[str]) -> None:
    told = slurm_lab.run("; ".join(f"scontrol show hostnames {shlex.quote(text)}; echo ." for text in lists))
    for text, names in zip(lists, told.stdout.split("\n.\n"), strict=False):
        # scontrol repeats what is named twice.
        assert expand(text) == tuple(dict.fromkeys(names.split())), text


@pytest.mark.soak
def test_one_whose_time_is_over_says_so(make_slurm_lab: MakeCluster) -> None:
    cluster = make_slurm_lab(1)
    id = submit(cluster, walltime_s=60)
    left = await_state(cluster, id, "active").left_s
    assert left is not None
    assert left <= 60
    wait_until("its end", lambda: look(cluster, id)[id].state == "ended", timeout_s=150)
    assert look(cluster, id)[id].end == "timeout"
