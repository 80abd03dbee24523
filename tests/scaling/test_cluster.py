"""The scaling simulator: by hand, against exact expectations, its three ways against each other."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdl_lib.measuring.evidence import Provenance
from fastdl_lib.scaling.simulator import (
    CAUSES,
    CONSTANTS,
    Asynchronous,
    Cluster,
    Combine,
    Communication,
    HalvingDoubling,
    Hierarchical,
    Job,
    ParameterServer,
    Ring,
    Stragglers,
    Synchronous,
    Tree,
    bottleneck,
    constant_table,
    discrete_event,
    expected_slowest,
    predict,
    sweep,
)

STEADY = Stragglers(spread=0)
NET = Cluster(nodes=1000, between_gb_per_s=1.25, between_latency_s=5e-5)
PODS = Cluster(
    nodes=16,
    gpus_per_node=8,
    inside_gb_per_s=20,
    inside_latency_s=1e-5,
    between_gb_per_s=1.25,
    between_latency_s=5e-5,
)
INCEPTION = Job(gradient_bytes=95e6, step_s=0.45, batch=64, largest_tensor_bytes=8.2e6)
ALL_REDUCE = (Ring(), Tree(), HalvingDoubling(), Hierarchical())


def cluster(nodes, **fields):
    """Links of 1 GB/s without latency, so that a second is a gigabyte."""
    return Cluster(nodes=nodes, **{"between_gb_per_s": 1, "between_latency_s": 0} | fields)


def job(**fields):
    """A gigabyte of gradients, in one bucket, that hides nothing."""
    plain = {"gradient_bytes": 1e9, "step_s": 1, "batch": 10, "hidden_share": 0}
    return Job(**plain | {"bucket_bytes": fields.get("gradient_bytes", 1e9)} | fields)


# --- ways to combine, by hand -------------------------------------------------------------------


def count_ring_bytes(workers, chunks):
    """Send chunks round a ring until all have the sum; return what each worker sent, in chunks."""
    held = [[{worker} for _ in range(chunks)] for worker in range(workers)]
    sent = [0] * workers
    for turn in range(2 * (workers - 1)):
        moves = []
        for worker in range(workers):
            chunk = (worker - turn) % workers
            moves.append(((worker + 1) % workers, chunk, set(held[worker][chunk])))
            sent[worker] += 1
        for receiver, chunk, parts in moves:
            held[receiver][chunk] |= parts
    assert all(parts == set(range(workers)) for chunks in held for parts in chunks)
    return sent


@pytest.mark.parametrize("workers", [2, 3, 8])
def test_a_ring_takes_what_counting_its_messages_says(workers):
    sent = count_ring_bytes(workers, workers)
    cost = Ring().communication(cluster(workers, between_latency_s=0.01), job(), workers)
    assert cost.bandwidth_s == pytest.approx(max(sent) / workers)
    assert cost.latency_s == pytest.approx(0.01 * 2 * (workers - 1))
    assert cost.incast_s == 0


def test_trees_take_fewer_rounds_and_halving_moves_no_more_than_a_ring():
    net = cluster(16, between_latency_s=0.01)
    ring, tree, halving = (c.communication(net, job(), 16) for c in ALL_REDUCE[:3])
    assert tree.latency_s == halving.latency_s == pytest.approx(0.08)
    assert ring.latency_s == pytest.approx(0.30)
    assert ring.bandwidth_s == halving.bandwidth_s == pytest.approx(2 * 15 / 16)
    assert tree.bandwidth_s == pytest.approx(8)


def test_each_bucket_pays_the_rounds_anew():
    net = cluster(4, between_latency_s=0.01)
    one = Ring().communication(net, job(), 4)
    ten = Ring().communication(net, job(bucket_bytes=1e8), 4)
    assert ten.latency_s == pytest.approx(10 * one.latency_s)
    assert ten.bandwidth_s == one.bandwidth_s


def test_a_ring_through_nodes_goes_at_the_pace_of_its_slowest_link():
    pods = dataclasses.replace(PODS, inside_gb_per_s=0.5)
    volume = 2 * 15 / 16 * 0.095
    assert Ring().communication(pods, INCEPTION, 16).bandwidth_s == pytest.approx(volume / 0.5)
    assert Ring().communication(PODS, INCEPTION, 16).bandwidth_s == pytest.approx(volume / 1.25)
    # Within a node the network plays no part.
    assert Ring().communication(PODS, INCEPTION, 8).bandwidth_s == pytest.approx(
        2 * 7 / 8 * 0.095 / 20
    )


def test_hierarchical_sums_inside_first():
    cost = Hierarchical().communication(PODS, INCEPTION, 32)
    inside, between = 2 * 7 / 8 * 0.095 / 20, 2 * 3 / 4 * 0.095 / 1.25
    assert cost.bandwidth_s == pytest.approx(inside + between)


@pytest.mark.parametrize(
    "combine", [*ALL_REDUCE, ParameterServer()], ids=lambda c: type(c).__name__
)
def test_one_worker_has_nothing_to_combine(combine):
    assert combine.communication(PODS, INCEPTION, 1) == Communication()
    assert predict(PODS, INCEPTION, combine, 1).speedup == pytest.approx([1])


def test_even_shards_on_all_nodes_take_what_a_ring_takes():
    net = cluster(8)
    servers = ParameterServer().communication(net, job(), 8)
    assert servers.bandwidth_s == pytest.approx(Ring().communication(net, job(), 8).bandwidth_s)
    assert servers.incast_s == pytest.approx(0, abs=1e-12)


def test_one_server_is_visited_by_everybody():
    cost = ParameterServer(shards=1).communication(cluster(8), job(), 8)
    # The server's own node needs no network: seven others, a gigabyte in and one out.
    assert cost.total_s == pytest.approx(7)
    dedicated = ParameterServer(shards=1, dedicated=True).communication(cluster(8), job(), 8)
    assert (dedicated.bandwidth_s, dedicated.incast_s) == pytest.approx((1, 7))
    four = ParameterServer(shards=4, dedicated=True).communication(cluster(8), job(), 8)
    assert four.total_s == pytest.approx(2)


def test_a_tensor_that_stays_whole_makes_incast_grow_whatever_the_servers():
    whole = job(largest_tensor_bytes=1e8)
    times = [
        ParameterServer(dedicated=True, shards=n).communication(cluster(n), whole, n).total_s
        for n in (10, 20, 40)
    ]
    assert times == pytest.approx([1, 2, 4])


def test_a_node_that_sums_its_gpus_talks_once():
    once = ParameterServer(shards=1, dedicated=True).communication(PODS, INCEPTION, 128)
    each = ParameterServer(shards=1, dedicated=True, summed_inside=False).communication(
        PODS, INCEPTION, 128
    )
    assert once.total_s - 0.095 / 20 == pytest.approx(16 * 0.095 / 1.25, rel=1e-3)
    assert each.total_s - 0.095 / 20 == pytest.approx(128 * 0.095 / 1.25, rel=1e-3)


def test_gpus_of_a_node_share_the_way_into_its_memory():
    pods = dataclasses.replace(PODS, host_gb_per_s=10, host_total_gb_per_s=10)
    cost = ParameterServer().communication(pods, INCEPTION, 8)
    assert cost.bandwidth_s == pytest.approx(0.0095)
    assert cost.bandwidth_s + cost.incast_s == pytest.approx(8 * 0.0095)


def test_shards_may_depend_on_the_workers():
    combine = ParameterServer({2: 1, 4: 4}, dedicated=True)
    assert combine.communication(cluster(4), job(), 2).total_s == pytest.approx(2)
    assert combine.communication(cluster(4), job(), 4).total_s == pytest.approx(1)
    with pytest.raises(KeyError, match="not for 3: add it"):
        combine.communication(cluster(4), job(), 3)


@pytest.mark.parametrize(
    "combine", [*ALL_REDUCE, ParameterServer()], ids=lambda c: type(c).__name__
)
def test_the_common_limit_of_the_network_counts_what_all_send(combine):
    free = combine.communication(cluster(8), job(), 8)
    capped = combine.communication(cluster(8, total_gb_per_s=2), job(), 8)
    assert capped.bandwidth_s == free.bandwidth_s
    assert capped.bandwidth_s + capped.incast_s == pytest.approx(8 * free.total_s / 2)
    enough = combine.communication(cluster(8, total_gb_per_s=8), job(), 8)
    assert enough.total_s == pytest.approx(free.total_s)


def test_software_may_be_slower_than_the_wire():
    slow = cluster(4, endpoint_gb_per_s=0.25)
    assert Ring().communication(slow, job(), 4).total_s == pytest.approx(6)
    assert cluster(4, endpoint_gb_per_s=9).node_gb_per_s == 1


# --- what hides ---------------------------------------------------------------------------------


def test_communication_hides_up_to_its_share_its_window_and_the_last_bucket():
    def exposed(seconds, combine=ALL_REDUCE[0], **fields):
        return combine.exposed_s(job(**fields), Communication(bandwidth_s=seconds))

    assert exposed(0.3) == 0.3, "nothing hides where no share may"
    some = {"hidden_share": 0.8, "bucket_bytes": 1e8}
    assert exposed(0.3, **some) == pytest.approx(0.06)
    assert exposed(3, **some) == pytest.approx(3 - 2 / 3), "no more than the backward pass"
    assert exposed(3, ParameterServer(), **some) == pytest.approx(2), "fetching hides too"
    assert exposed(0.3, hidden_share=1, bucket_bytes=5e8) == pytest.approx(0.15)
    assert exposed(0.3, hidden_share=1, bucket_bytes=2e9) == 0.3


def test_a_step_is_the_slowest_and_what_is_left_of_the_communication():
    scaling = predict(cluster(4), job(), Ring(), [1, 4], stragglers=Stragglers(spread=0.1))
    assert scaling.compute_s == pytest.approx([1, 1])
    assert scaling.waiting_s == pytest.approx([0, 0.1 * (1 / 2 + 1 / 3 + 1 / 4)])
    assert scaling.communication_s == pytest.approx([0, 1.5])
    assert scaling.step_s == pytest.approx(
        scaling.compute_s + scaling.waiting_s + scaling.communication_s
    )
    assert scaling.images_per_s == pytest.approx(scaling.workers * 10 / scaling.step_s)
    assert scaling.speedup == pytest.approx(scaling.images_per_s / 10)
    assert scaling.efficiency_pct == pytest.approx(100 * scaling.speedup / [1, 4])
    table = scaling.table()
    assert [row["workers"] for row in table.rows] == [1, 4]
    assert "simulated" in str(table)


@settings(deadline=None, max_examples=50)
@given(
    workers=st.integers(1, 128),
    combine=st.sampled_from([*ALL_REDUCE, ParameterServer(), ParameterServer(3, dedicated=True)]),
    gb_per_s=st.floats(0.01, 100),
    spread=st.floats(0, 0.5),
)
def test_never_faster_than_the_gpus_and_slower_on_slower_links(workers, combine, gb_per_s, spread):
    stragglers = Stragglers(spread=spread)
    pods = dataclasses.replace(PODS, between_gb_per_s=gb_per_s)
    fast = predict(pods, INCEPTION, combine, workers, stragglers=stragglers)
    slow = predict(pods.with_link_share(0.5), INCEPTION, combine, workers, stragglers=stragglers)
    assert fast.efficiency_pct[0] <= 100 + 1e-9
    assert slow.speedup[0] <= fast.speedup[0] + 1e-9
    assert min(fast.waiting_s[0], fast.communication_s[0]) >= -1e-12


# --- stragglers ---------------------------------------------------------------------------------

KINDS = {
    "exponential": Stragglers(spread=0.2),
    "lognormal": Stragglers(spread=0.2, distribution="lognormal"),
    "slow nodes": Stragglers(spread=0.1, slow_probability=0.05, slow_factor=3),
    "both": Stragglers(spread=0.3, distribution="lognormal", slow_probability=0.1, slow_factor=1.5),
}


def slowest_by_loops(workers, stragglers, backup, gpus, steps=40_000):
    """The definition: draw everybody, sort, take the last that counts."""
    rng = np.random.default_rng(1)
    times = stragglers.draw(rng, (steps, workers))
    nodes = np.arange(workers) // gpus
    slow = rng.random((steps, nodes[-1] + 1)) < stragglers.slow_probability
    times *= np.where(slow, stragglers.slow_factor, 1)[:, nodes]
    return np.sort(times, axis=1)[:, workers - 1 - backup].mean()


@pytest.mark.parametrize("backup", [0, 2])
@pytest.mark.parametrize(("workers", "gpus"), [(3, 1), (20, 1), (20, 8)])
@pytest.mark.parametrize("kind", KINDS)
def test_expected_slowest_against_drawing_it(kind, workers, gpus, backup):
    stragglers = KINDS[kind]
    found = expected_slowest(workers, stragglers, backup=backup, gpus_per_node=gpus)
    assert found == pytest.approx(slowest_by_loops(workers, stragglers, backup, gpus), rel=0.006)


def test_the_closed_form_agrees_with_the_integral():
    plain = Stragglers(spread=0.1)
    # A slow node that never comes takes the long way round.
    numeric = Stragglers(spread=0.1, slow_probability=1e-12, slow_factor=1.0001)
    assert plain.plain and not numeric.plain
    for workers, backup in ((1, 0), (10, 0), (1000, 0), (100, 4)):
        assert expected_slowest(workers, numeric, backup=backup) == pytest.approx(
            expected_slowest(workers, plain, backup=backup), rel=1e-4
        )


def test_a_steps_mean_and_spread_are_what_they_say():
    for distribution in ("exponential", "lognormal"):
        stragglers = Stragglers(spread=0.3, distribution=distribution)
        times = stragglers.draw(np.random.default_rng(0), 200_000)
        assert times.mean() == pytest.approx(1, rel=0.005)
        assert times.std() == pytest.approx(0.3, rel=0.02)
        grid = np.linspace(0.5, 3, 20)
        drawn = (times[:, None] <= grid).mean(axis=0)
        assert stragglers.cdf(grid) == pytest.approx(drawn, abs=0.005)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backup", [0, 3])
def test_a_sweep_is_within_one_percent_of_the_expectation(kind, backup):
    counts = range(backup + 1, 301)
    pods = dataclasses.replace(NET, gpus_per_node=4, inside_gb_per_s=20, inside_latency_s=1e-5)
    same = {"mode": Synchronous(backup), "stragglers": KINDS[kind]}
    drawn = sweep(pods, INCEPTION, Ring(), counts, **same)
    every = [*counts][::23]
    expected = predict(pods, INCEPTION, Ring(), every, **same)
    at = [n - backup - 1 for n in every]
    assert drawn.step_s[at] == pytest.approx(expected.step_s, rel=0.01)


def test_the_whole_sweep_of_a_thousand_workers():
    drawn = sweep(NET, INCEPTION, Ring(), range(1, 1001))
    expected = predict(NET, INCEPTION, Ring(), range(1, 1001))
    assert drawn.step_s.shape == (1000,)
    assert np.abs(drawn.step_s / expected.step_s - 1).max() < 0.01
    again = sweep(NET, INCEPTION, Ring(), range(1, 1001))
    assert np.array_equal(drawn.step_s, again.step_s), "the seed decides"
    other = sweep(NET, INCEPTION, Ring(), [1000], seed=1)
    assert other.step_s[0] != drawn.step_s[-1]


# --- backup workers, failures, staleness --------------------------------------------------------


def test_backup_workers_shorten_the_step_and_do_not_count():
    ragged = Stragglers(spread=0.2)
    waits, counted = [], []
    for backup in (0, 1, 4):
        scaling = predict(NET, job(), Ring(), 50, mode=Synchronous(backup), stragglers=ragged)
        waits.append(scaling.waiting_s[0])
        counted.append(scaling.counted[0])
    assert waits == sorted(waits, reverse=True) and len(set(waits)) == 3
    assert counted == [50, 49, 46]


@pytest.mark.parametrize("simulate", [predict, sweep, discrete_event])
def test_a_failed_node(simulate):
    failed = Stragglers(failed_nodes=1)
    net, servers = cluster(8), ParameterServer()
    stopped = simulate(net, job(), servers, 8, stragglers=failed)
    assert math.isinf(stopped.step_s[0]) and stopped.images_per_s[0] == 0
    enough = simulate(net, job(), servers, 8, mode=Synchronous(backup=1), stragglers=failed)
    assert math.isfinite(enough.step_s[0]) and enough.counted[0] == 7
    free = simulate(net, job(), servers, 8, mode=Asynchronous(), stragglers=failed)
    assert math.isfinite(free.step_s[0]) and free.counted[0] == 7
    bound = simulate(net, job(), servers, 8, mode=Asynchronous(4), stragglers=failed)
    assert bound.images_per_s[0] == 0


def test_staleness_trades_waiting_for_old_weights():
    ragged = Stragglers(spread=0.3)
    servers = ParameterServer(shards=16, dedicated=True)
    waits = [
        predict(NET, INCEPTION, servers, 16, mode=Asynchronous(s), stragglers=ragged).waiting_s[0]
        for s in (0, 1, 4, 16, None)
    ]
    assert waits == sorted(waits, reverse=True) and waits[-1] == 0
    synchronous = predict(NET, INCEPTION, servers, 16, stragglers=ragged).waiting_s[0]
    assert waits[0] == pytest.approx(synchronous, rel=0.03), "no step ahead is synchronous"


def test_asynchronous_workers_cannot_pass_the_busiest_link():
    one = ParameterServer(shards=1, dedicated=True)
    scaling = predict(cluster(64), job(), one, [1, 8, 64], mode=Asynchronous(), stragglers=STEADY)
    # A gigabyte an update over 1 GB/s: one update a second, however many workers.
    assert scaling.images_per_s[1:] == pytest.approx([10, 10], rel=1e-6)


def test_slow_nodes_slow_asynchronous_workers_by_their_mean():
    servers = ParameterServer(shards=64, dedicated=True)
    light = job(gradient_bytes=1e3)
    slow = Stragglers(spread=0, slow_probability=0.1, slow_factor=3)
    scaling = predict(cluster(8), light, servers, 8, mode=Asynchronous(), stragglers=slow)
    assert scaling.step_s == pytest.approx([1.2], rel=1e-3)
    run = discrete_event(
        cluster(8), light, servers, 8, mode=Asynchronous(), stragglers=slow, steps=2000
    )
    assert run.step_s == pytest.approx([1.2], rel=0.02)


# --- discrete events against the expectation ----------------------------------------------------

DEDICATED = ParameterServer(shards=4, dedicated=True)
SAME = {
    "all-reduce": (Ring(), [1, 8, 64], {}),
    "servers on the nodes": (ParameterServer(), [2, 8, 16, 128], {}),
    "one server: incast": (ParameterServer(shards=1, dedicated=True), [2, 4, 8, 16], {}),
    "four servers": (DEDICATED, [2, 8, 32], {}),
    "backup workers": (
        ParameterServer(shards=16, dedicated=True),
        [8, 16],
        {"mode": Synchronous(backup=2), "stragglers": Stragglers(spread=0.1)},
    ),
    "asynchronous": (DEDICATED, [4, 16, 48], {"mode": Asynchronous()}),
    "bounded staleness": (
        ParameterServer(shards=16, dedicated=True),
        [4, 16],
        {"mode": Asynchronous(2), "stragglers": Stragglers(spread=0.2)},
    ),
}


@pytest.mark.parametrize("case", SAME)
def test_discrete_events_agree_with_the_sweep_and_the_expectation(case):
    combine, counts, modes = SAME[case]
    events = discrete_event(NET, INCEPTION, combine, counts, steps=60, **modes)
    drawn = sweep(NET, INCEPTION, combine, counts, steps=2000, **modes)
    expected = predict(NET, INCEPTION, combine, counts, **modes)
    assert drawn.step_s == pytest.approx(expected.step_s, rel=0.01)
    assert events.step_s == pytest.approx(expected.step_s, rel=0.06)


def test_staleness_is_counted_and_bounded():
    servers = ParameterServer(shards=16, dedicated=True)
    ragged = Stragglers(spread=0.3)

    def staleness(bound):
        mode = Asynchronous(bound)
        run = discrete_event(NET, INCEPTION, servers, 8, mode=mode, stragglers=ragged, steps=200)
        return run.staleness[0]

    # Seven others update once in the meantime; in lockstep they do so one after another.
    assert staleness(None) == pytest.approx(7, abs=0.2)
    assert staleness(0) == pytest.approx(3.5, abs=0.1)
    assert staleness(0) < staleness(1) < staleness(None)
    assert discrete_event(NET, INCEPTION, servers, 8, steps=5).staleness is None


def test_gpus_summed_inside_wait_for_the_slowest_of_their_node():
    events = discrete_event(PODS, INCEPTION, ParameterServer(), [8, 32], steps=60)
    expected = predict(PODS, INCEPTION, ParameterServer(), [8, 32])
    assert events.step_s == pytest.approx(expected.step_s, rel=0.03)


# --- what holds it back -------------------------------------------------------------------------

VGG = Job(gradient_bytes=553e6, step_s=0.4, batch=64, largest_tensor_bytes=411e6)
SMALL = Job(gradient_bytes=5e5, step_s=2e-3, batch=100)
HELD_BACK = {
    "compute": (NET, INCEPTION, Ring(), 8, Stragglers()),
    "bandwidth": (NET, VGG, Ring(), 16, Stragglers()),
    "latency": (NET, SMALL, Ring(), 256, Stragglers()),
    "incast": (NET, INCEPTION, ParameterServer(shards=1, dedicated=True), 64, Stragglers()),
    "stragglers": (
        NET,
        INCEPTION,
        HalvingDoubling(),
        64,
        Stragglers(spread=0.1, slow_probability=0.1, slow_factor=5),
    ),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_each_cause_is_named_where_it_holds_back(cause):
    net, work, combine, workers, stragglers = HELD_BACK[cause]
    found = bottleneck(net, work, combine, workers, stragglers=stragglers)
    assert found.cause == cause
    assert set(found.saved_s) == set(CAUSES)
    assert all(saved >= -1e-12 for saved in found.saved_s.values())
    step = predict(net, work, combine, workers, stragglers=stragglers).step_s[0]
    assert found.step_s == pytest.approx(step)
    assert found.advice.startswith(cause) and found.table().rows[0]["cause"] == cause


def test_the_cap_of_the_network_is_incast():
    capped = dataclasses.replace(NET, total_gb_per_s=3)
    assert bottleneck(capped, INCEPTION, Ring(), 128).cause == "incast"


# --- errors that teach --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: Cluster(nodes=0), ValueError, "nodes must be at least 1, got 0"),
        (lambda: Cluster(nodes=2), ValueError, "2 nodes need a link: give between_gb_per_s"),
        (
            lambda: Cluster(nodes=1, gpus_per_node=4, inside_gb_per_s=20),
            ValueError,
            "4 GPUs in a node need a link: give inside_latency_s",
        ),
        (lambda: cluster(2, between_gb_per_s=0), ValueError, "between_gb_per_s must be above 0"),
        (
            lambda: cluster(2, between_latency_s=-1),
            ValueError,
            "between_latency_s must be at least",
        ),
        (lambda: cluster(2, total_gb_per_s="3"), TypeError, "total_gb_per_s must be a number"),
        (lambda: job(step_s=0), ValueError, "step_s must be above 0"),
        (lambda: job(batch=1.5), TypeError, "batch must be a whole number"),
        (lambda: job(hidden_share=1.1), ValueError, "hidden_share"),
        (lambda: job(largest_tensor_bytes=2e9), ValueError, "larger than all gradients"),
        (lambda: Stragglers(spread=-0.1), ValueError, "spread must be at least 0"),
        (lambda: Stragglers(distribution="normal"), ValueError, "'exponential' or 'lognormal'"),
        (lambda: Stragglers(slow_probability=1), ValueError, "slow_probability"),
        (lambda: Stragglers(slow_factor=0.5), ValueError, "slow_factor must be at least 1"),
        (lambda: Synchronous(-1), ValueError, "backup must be at least 0"),
        (lambda: Asynchronous(-1), ValueError, "staleness must be at least 0"),
        (lambda: ParameterServer(0), ValueError, "shards must be at least 1"),
        (lambda: ParameterServer({2: 0}), ValueError, "shards must be at least 1"),
        (lambda: predict(cluster(4), job(), Ring(), []), ValueError, "workers is empty"),
        (lambda: predict(cluster(4), job(), Ring(), 5), ValueError, "5 workers need 5 GPUs"),
        (lambda: predict(cluster(4), job(), Ring(), 2.0), TypeError, "whole number|iterable"),
        (
            lambda: predict(cluster(4), job(), Ring(), 2, mode=Synchronous(2)),
            ValueError,
            "2 backup workers of 2 leave no gradients",
        ),
        (
            lambda: predict(cluster(4), job(), Ring(), 2, mode=Asynchronous()),
            ValueError,
            "need a ParameterServer; Ring is an all-reduce",
        ),
        (lambda: sweep(cluster(4), job(), Ring(), 2, steps=0), ValueError, "steps must be"),
        (
            lambda: discrete_event(cluster(4), job(), Ring(), 2, pieces=1),
            ValueError,
            "pieces must be at least 2",
        ),
        (
            lambda: bottleneck(NET, job(), Ring(), 2, stragglers=Stragglers(failed_nodes=1)),
            ValueError,
            "stops every synchronous step",
        ),
        (lambda: Combine().communication(NET, job(), 2), NotImplementedError, "Combine does not"),
    ],
)
def test_errors_say_what_came_and_what_to_do(make, error, says):
    with pytest.raises(error, match=says):
        make()


def test_every_constant_has_a_unit_and_a_source():
    assert {"spread", "hidden_share", "grpc_2016", "ec2_high"} <= set(CONSTANTS)
    for name, constant in CONSTANTS.items():
        assert constant.unit and len(constant.source) > 10, name
        assumed = constant.provenance is Provenance.SIMULATED
        assert assumed == constant.source.startswith("assumption: "), name
    rows = {row["name"]: row for row in constant_table().rows}
    assert rows["ec2_high"]["kind"] == "assumption"
    assert rows["nvlink1"]["kind"] == "published"


def test_the_computed_constants_follow_from_what_was_published():
    # Synchronous steps 10 % longer at 100 workers; 100 x 100 MB from 16 servers in 613 ms.
    assert expected_slowest(100, Stragglers()) == pytest.approx(1.1)
    assert CONSTANTS["grpc_2017"].median == pytest.approx(1.0196, rel=1e-3)
    servers = ParameterServer(shards=16, dedicated=True)
    google = cluster(100, between_gb_per_s=CONSTANTS["grpc_2017"].median)
    fetch = servers.communication(google, job(gradient_bytes=1e8), 100)
    assert fetch.total_s == pytest.approx(0.613)
