"""Batches that are simulated: what they take is what arithmetic says, and the core decides."""

from __future__ import annotations

import random
import statistics

import pytest

from benches.scale import play
from liborch.errors import QuantityError, SpecError
from liborch.sim.plan import Costs, Model, Outcome, Room, Times, Work, parse_times, simulate
from liborch.specs import AllocationSpec

#: Nothing but the executions themselves takes time.
FREE = Costs(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def desks(count: int = 3, cpus: int = 4, **more: float) -> Model:
    """Nodes that are there for good."""
    return Model("desks", {f"d{number}": Room(cpus) for number in range(count)}, **more)  # type: ignore[arg-type]


def cluster(count: int = 3, cpus: int = 4, *, wait: str = "0s", **spec: float | None) -> Model:
    """Machines that a batch system gives out."""
    told: dict[str, object] = {"nodes": count, "most": 1, "walltime_s": 120.0, **spec}
    return Model(
        "big",
        {f"c{number}": Room(cpus) for number in range(count)},
        AllocationSpec(**told),  # type: ignore[arg-type]
        parse_times(wait),
    )


def test_without_costs_a_batch_takes_what_arithmetic_says() -> None:
    outcome = simulate(desks(), Work(120, Times(10.0)), costs=FREE)
    assert (outcome.succeeded, outcome.makespan_s) == (120, 100.0)
    assert outcome.utilisation == pytest.approx(1.0)
    assert (outcome.longest_wait_s, outcome.median_wait_s) == (90.0, 50.0)
    assert outcome.node_hours == pytest.approx(3 * 100 / 3600)


def test_costs_of_real_life_are_paid_by_each_execution_and_by_each_allocation() -> None:
    free = simulate(cluster(), Work(300, Times(2.0)), costs=FREE)
    dear = simulate(cluster(), Work(300, Times(2.0)), costs=Costs(start_s=0.5, link_s=5.0))
    # 25 in a row on each slot.
    assert dear.makespan_s - free.makespan_s > 25 * 0.5 + 5.0


def test_allocations_expire_and_others_follow_until_all_is_done() -> None:
    outcome = simulate(cluster(wait="20s"), Work(1000, Times(1.0)))
    assert outcome.succeeded == 1000
    assert len(outcome.allocations) == 1
    outcome = simulate(cluster(wait="20s"), Work(2500, Times(1.0)))
    assert outcome.succeeded == 2500
    assert len(outcome.allocations) >= 2
    assert all(each.end_s - each.begin_s <= 120.0 for each in outcome.allocations)
    # It began when the first wait was over, and nothing of the two waits was of use.
    assert outcome.allocations[0].begin_s - outcome.allocations[0].asked_s == pytest.approx(20.0, abs=1.0)
    assert outcome.makespan_s > 2500 / 12 + 40.0


def test_what_does_not_fit_into_what_is_left_of_an_allocation_waits_for_the_next() -> None:
    outcome = simulate(cluster(), Work(36, Times(45.0), walltime_s=50.0))
    assert outcome.succeeded == 36
    # Two of 50 s fit into 115, three do not.
    assert (outcome.cut_off, len(outcome.allocations)) == (0, 2)


def test_what_no_allocation_is_long_enough_for_is_told_as_such() -> None:
    outcome = simulate(cluster(), Work(3, Times(45.0), walltime_s=200.0))
    assert outcome.failed == 3
    assert "allocations of big last 2m" in outcome.why


def test_nodes_fail_come_back_and_nothing_is_lost_for_good() -> None:
    outcome = simulate(desks(failures_per_hour=20.0, repair_s=30.0), Work(1000, Times(5.0), retries=100))
    assert outcome.succeeded == 1000
    assert outcome.node_failures > 3
    assert outcome.lost > 3
    assert outcome.attempts == 1000 + outcome.lost
    outcome = simulate(
        Model(
            "big", cluster().nodes, AllocationSpec(nodes=1, most=3, walltime_s=600.0), failures_per_hour=20.0
        ),
        Work(1000, Times(5.0)),
    )
    assert outcome.succeeded == 1000
    assert {each.how for each in outcome.allocations} >= {"node failed", "given back"}


def test_an_execution_on_several_nodes_needs_them_at_the_same_time() -> None:
    outcome = simulate(desks(3, 1), Work(4, Times(10.0), node_count=2), costs=FREE)
    assert (outcome.succeeded, outcome.makespan_s) == (4, 40.0)


@pytest.mark.parametrize(
    ("gpus", "makespan_s"), [(1, 40.0), (0.6, 40.0), (0.5, 20.0), (0.33, 20.0), (0.25, 10.0)]
)
def test_shares_of_gpus_run_beside_each_other_as_far_as_they_fit(gpus: float, makespan_s: float) -> None:
    model = Model("box", {"box": Room(64, gpus=2)})
    outcome = simulate(model, Work(8, Times(10.0), gpus=gpus), costs=FREE)
    assert (outcome.succeeded, outcome.makespan_s) == (8, makespan_s)


def test_a_seed_is_a_whole_outcome() -> None:
    def figures(seed: int) -> tuple[Outcome, ...]:
        model = cluster(wait="10s±10s")
        return (simulate(model, Work(500, Times(3.0, 2.0)), seed=seed),)

    assert figures(1) == figures(1)
    assert figures(1) != figures(2)


def test_a_batch_that_would_never_end_is_an_error_that_says_why() -> None:
    with pytest.raises(SpecError, match="without nodes"):
        simulate(Model("big", {}), Work(1, Times(1.0)))


@pytest.mark.parametrize(
    ("text", "mean_s", "sd_s"), [("10m", 600.0, 0.0), ("90±30", 90.0, 30.0), ("1h +- 5m", 3600.0, 300.0)]
)
def test_times_are_written_with_their_spread(text: str, mean_s: float, sd_s: float) -> None:
    assert parse_times(text) == Times(mean_s, sd_s)


@pytest.mark.parametrize("text", ["", "10x", "10m±", "0±5s"])
def test_other_texts_are_no_times(text: str) -> None:
    with pytest.raises(QuantityError):
        parse_times(text)


def test_times_that_are_drawn_are_as_long_as_they_were_said_to_be() -> None:
    rng = random.Random(1)
    drawn = [Times(100.0, 50.0).draw(rng) for _ in range(20_000)]
    assert statistics.mean(drawn) == pytest.approx(100.0, rel=0.03)
    assert statistics.stdev(drawn) == pytest.approx(50.0, rel=0.1)
    assert min(drawn) > 0
    assert {Times(seen=(1.0, 2.0)).draw(rng) for _ in range(50)} == {1.0, 2.0}


def test_a_small_part_of_the_largest_cluster_runs_to_its_end_at_an_even_cost() -> None:
    found = play(0.004)
    assert found["decisions"] > 3 * 40_000
    # Far from what it takes; a bound that a busy machine keeps, and a cost that grows with the batch does not.
    assert found["last_quarter_us"] < 5 * found["first_quarter_us"]
