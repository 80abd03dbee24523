"""The scaling simulator: by hand, against exact expectations, the formulas against the events."""

import dataclasses
import itertools
import math
from functools import partial

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fastdl_lib.measuring.evidence import Provenance
from fastdl_lib.scaling.clusters import (
    Cluster,
    Communication,
    HalvingDoubling,
    Job,
    ParameterServer,
    Ring,
    Tree,
    constants,
)
from fastdl_lib.scaling.events import run_events
from fastdl_lib.scaling.simulator import (
    Asynchronous,
    Stragglers,
    Synchronous,
    all_reduce_schedule,
    bottleneck,
    expected_slowest,
    step_times,
)

STEADY = Stragglers(spread=0)
NET = Cluster(nodes=1000, between_gb_per_s=1.25, between_latency_s=5e-5)
PODS = dataclasses.replace(
    NET, nodes=16, gpus_per_node=8, inside_gb_per_s=20, inside_latency_s=1e-5
)
INCEPTION = Job(gradient_bytes=95e6, step_s=0.45, batch=64, largest_tensor_bytes=8.2e6)
WAYS = (Ring(), Tree(), HalvingDoubling(), ParameterServer())
ONE_SERVER = ParameterServer(shards=1, dedicated=True)


def cluster(nodes, **fields):
    """Links of 1 GB/s without latency, so that a second is a gigabyte."""
    return Cluster(nodes=nodes, **{"between_gb_per_s": 1, "between_latency_s": 0} | fields)


def job(**fields):
    """A gigabyte of gradients, in one bucket, that hides nothing."""
    plain = {"gradient_bytes": 1e9, "step_s": 1, "batch": 10, "hidden_share": 0}
    return Job(**plain | {"bucket_bytes": fields.get("gradient_bytes", 1e9)} | fields)


# --- ways to combine, by hand -------------------------------------------------------------------


@pytest.mark.parametrize("workers", [2, 3, 4, 8, 11])
@pytest.mark.parametrize("combine", [Ring(), Tree()], ids=lambda c: type(c).__name__)
def test_an_all_reduce_takes_what_its_schedule_says(combine, workers):
    states, moved = all_reduce_schedule(type(combine).__name__.lower(), workers)
    everybody = set(range(workers))
    assert all(chunk == everybody for own in states[-1] for chunk in own)
    assert any(chunk != everybody for own in states[-2] for chunk in own), "a step too many"
    cost = combine.communication(cluster(workers, between_latency_s=0.01), job(), workers)
    assert cost[:3] == pytest.approx((moved, 0.01 * (len(states) - 1), 0))


def test_in_a_schedule_sums_only_travel():
    for way, workers in (("ring", 5), ("tree", 6)):
        states, moved = all_reduce_schedule(way, workers)
        sent = 0
        for before, after in itertools.pairwise(states):
            for worker, chunk in np.ndindex(workers, len(before[0])):
                had, has = before[worker][chunk], after[worker][chunk]
                if has != had:
                    sent += 1
                    others = [own[chunk] for w, own in enumerate(before) if w != worker]
                    assert any(has == had | other for other in others)
        # All workers but one have to hear n - 1 times of a sum, and of its result.
        assert sent == 2 * (workers - 1) * len(states[0][0])
        assert way == "tree" or moved == sent / workers / workers


def test_halving_moves_no_more_than_a_ring_in_the_rounds_of_a_tree():
    net = cluster(16, between_latency_s=0.01)
    ring, tree, halving, _ = (c.communication(net, job(), 16) for c in WAYS)
    assert halving.latency_s == tree.latency_s == pytest.approx(0.08)
    assert halving.bandwidth_s == ring.bandwidth_s == pytest.approx(2 * 15 / 16)
    # Each bucket pays the rounds anew.
    ten = Ring().communication(net, job(bucket_bytes=1e8), 16)
    assert ten[:3] == pytest.approx((ring.bandwidth_s, 10 * ring.latency_s, 0))


def test_a_ring_through_nodes_goes_at_the_pace_of_its_slowest_link():
    slow_inside = dataclasses.replace(PODS, inside_gb_per_s=0.5)
    for pods, workers, rate in ((slow_inside, 16, 0.5), (PODS, 16, 1.25), (PODS, 8, 20)):
        # Within a node the network plays no part.
        volume = 2 * (workers - 1) / workers * 0.095
        cost = Ring().communication(pods, INCEPTION, workers)
        assert cost.bandwidth_s == pytest.approx(volume / rate)


@pytest.mark.parametrize(
    ("combine", "gigabytes", "rounds"),
    [(Ring(), 14 / 8, 14), (Tree(), 6, 6), (HalvingDoubling(), 14 / 8, 6)],
)
def test_inside_a_node_the_same_goes_over_its_links(combine, gigabytes, rounds):
    eight = cluster(1, gpus_per_node=8, inside_gb_per_s=1, inside_latency_s=0.01)
    cost = combine.communication(eight, job(), 8)
    assert cost[:3] == pytest.approx((gigabytes, 0.01 * rounds, 0))


@pytest.mark.parametrize("combine", WAYS, ids=lambda c: type(c).__name__)
def test_one_worker_has_nothing_to_combine(combine):
    assert combine.communication(PODS, INCEPTION, 1) == Communication()
    assert step_times(PODS, INCEPTION, combine, 1).speedup == pytest.approx([1])


def test_one_server_is_visited_by_everybody():
    cost = ParameterServer(shards=1).communication(cluster(8), job(), 8)
    # The server's own node needs no network: seven others, a gigabyte in and one out.
    assert cost.total_s == pytest.approx(7)
    assert ONE_SERVER.communication(cluster(8), job(), 8)[:3] == pytest.approx((1, 0, 7))
    four = ParameterServer(shards=4, dedicated=True).communication(cluster(8), job(), 8)
    assert four.total_s == pytest.approx(2)


def test_a_tensor_that_stays_whole_makes_incast_grow_whatever_the_servers():
    whole = job(largest_tensor_bytes=1e8)
    times = [
        ParameterServer(dedicated=True, shards=n).communication(cluster(n), whole, n).total_s
        for n in (10, 20, 40)
    ]
    assert times == pytest.approx([1, 2, 4])


def test_gpus_of_a_node_share_the_way_into_its_memory():
    pods = dataclasses.replace(PODS, host_gb_per_s=10, host_total_gb_per_s=10)
    cost = ParameterServer().communication(pods, INCEPTION, 8)
    assert cost.bandwidth_s == pytest.approx(0.0095)
    assert cost.bandwidth_s + cost.incast_s == pytest.approx(8 * 0.0095)


def test_shards_may_depend_on_the_workers():
    combine = ParameterServer({2: 1, 4: 4}, dedicated=True)
    assert combine.communication(cluster(4), job(), 2).total_s == pytest.approx(2)
    assert combine.communication(cluster(4), job(), 4).total_s == pytest.approx(1)


@pytest.mark.parametrize(("gb_per_s", "seconds"), [(0.25, 6), (9, 1.5)])
def test_software_may_be_slower_than_the_wire(gb_per_s, seconds):
    net = cluster(4, endpoint_gb_per_s=gb_per_s)
    assert Ring().communication(net, job(), 4).total_s == pytest.approx(seconds)


# --- what hides ---------------------------------------------------------------------------------


def test_communication_hides_up_to_its_share_its_window_and_the_last_bucket():
    def exposed(seconds, combine=WAYS[0], **fields):
        work = job(**fields)
        cost = Communication(bandwidth_s=seconds, last=work.last_bucket)
        return combine.exposed_s(work, cost, 1)

    assert exposed(0.3) == 0.3, "nothing hides where no share may"
    some = {"hidden_share": 0.8, "bucket_bytes": 1e8}
    assert exposed(0.3, **some) == pytest.approx(0.06)
    assert exposed(3, **some) == pytest.approx(3 - 2 / 3), "no more than the backward pass"
    assert exposed(3, ParameterServer(), **some) == pytest.approx(2), "fetching hides too"
    assert exposed(0.3, hidden_share=1, bucket_bytes=5e8) == pytest.approx(0.15)
    assert exposed(0.3, hidden_share=1, bucket_bytes=2e9) == 0.3
    # The last of ten messages waits for its answer; a server's answer is waited for whole.
    slow = Communication(latency_s=0.1)
    tenths = job(hidden_share=1, bucket_bytes=1e8)
    assert Ring().exposed_s(tenths, slow, 1) == pytest.approx(0.01)
    assert ParameterServer().exposed_s(tenths, slow, 1) == pytest.approx(0.1)


def test_a_step_is_the_slowest_and_what_is_left_of_the_communication():
    scaling = step_times(cluster(4), job(), Ring(), [1, 4], stragglers=Stragglers(spread=0.1))
    assert scaling.compute_s == pytest.approx([1, 1])
    assert scaling.waiting_s == pytest.approx([0, 0.1 * (1 / 2 + 1 / 3 + 1 / 4)])
    assert scaling.communication_s == pytest.approx([0, 1.5])
    step_s = scaling.compute_s + scaling.waiting_s + scaling.communication_s
    assert scaling.step_s == pytest.approx(step_s)
    assert scaling.images_per_s == pytest.approx(scaling.workers * 10 / step_s)
    assert scaling.speedup == pytest.approx(scaling.images_per_s / 10)
    assert scaling.efficiency_pct == pytest.approx(100 * scaling.speedup / [1, 4])


# --- laws, over random clusters -----------------------------------------------------------------

SOME = settings(derandomize=True, max_examples=60)


def between(low, high):
    return st.floats(math.log(low), math.log(high)).map(math.exp)


RATES = ("inside_gb_per_s", "host_gb_per_s", "host_total_gb_per_s", "between_gb_per_s")
RATES += ("endpoint_gb_per_s",)
LATENCIES = ("inside_latency_s", "between_latency_s")


@st.composite
def runs(draw):
    """A cluster, a job, a way to combine, a number of workers; how they wait, and their steps."""
    needed = {name: draw(between(0.01, 100)) for name in ("inside_gb_per_s", "between_gb_per_s")}
    others = {name: draw(st.none() | between(0.01, 100)) for name in RATES if name not in needed}
    late = {name: draw(st.just(0) | between(1e-6, 1e-2)) for name in LATENCIES}
    nodes, gpus = draw(st.integers(1, 12)), draw(st.sampled_from([1, 1, 2, 8]))
    net = Cluster(nodes=nodes, gpus_per_node=gpus, **needed, **others, **late)
    size = draw(between(1e4, 1e10))
    work = Job(
        gradient_bytes=size,
        step_s=draw(between(1e-3, 10)),
        batch=8,
        hidden_share=draw(st.sampled_from([0, 1]) | st.floats(0, 1)),
        bucket_bytes=draw(between(1e5, 1e9)),
        largest_tensor_bytes=size * draw(st.floats(0, 1)),
    )
    servers = ParameterServer(
        shards=draw(st.none() | st.integers(1, 8)),
        dedicated=draw(st.booleans()),
        summed_inside=draw(st.booleans()),
    )
    combine = draw(st.sampled_from([Ring(), Tree(), HalvingDoubling(), servers, servers]))
    workers = draw(st.integers(1, net.gpus))
    modes = [Synchronous(), Synchronous(min(2, workers - 1))]
    if combine is servers:
        modes += [Asynchronous(), Asynchronous(draw(st.integers(0, 3)))]
    mode = draw(st.sampled_from(modes))
    one_client = gpus == 1 or not getattr(combine, "summed_inside", False)
    assume(one_client or not getattr(mode, "backup", 0))
    slow = {"slow_probability": draw(st.sampled_from([0, 0, 0.1])), "slow_factor": 3}
    stragglers = Stragglers(spread=draw(st.sampled_from([0, 0.02, 0.3])), **slow)
    return (net, work, combine, workers), {"mode": mode, "stragglers": stragglers}


@SOME
@given(runs())
def test_no_part_of_a_step_is_negative_and_they_add_up(run):
    asked, options = run
    for scaling in (step_times(*asked, **options), run_events(*asked, **options, steps=4)):
        parts = scaling.compute_s, scaling.waiting_s, scaling.communication_s
        assert min(part[0] for part in parts) >= 0 < scaling.step_s[0] < math.inf
        assert sum(part[0] for part in parts) == pytest.approx(scaling.step_s[0])
        if options["mode"] == Synchronous():
            assert scaling.efficiency_pct[0] <= 100 + 1e-9 or "events" in scaling.how


MORE_WORK = ("gradient_bytes", "largest_tensor_bytes", "step_s", *LATENCIES)


@SOME
@given(runs(), st.sampled_from([*RATES, *MORE_WORK]), between(1, 1000))
def test_faster_links_never_slow_a_step_nor_do_more_bytes_or_latency_shorten_it(run, name, by):
    (net, work, *rest), options = run
    changed = net if hasattr(net, name) else work
    assume(getattr(changed, name) is not None)
    most = work.gradient_bytes if name == "largest_tensor_bytes" else math.inf
    more = dataclasses.replace(changed, **{name: min(most, by * getattr(changed, name))})
    with_more = (more, work) if changed is net else (net, more)
    times = [step_times(*pair, *rest, **options).step_s[0] for pair in ((net, work), with_more)]
    shorter, longer = times if name in MORE_WORK else reversed(times)
    assert shorter <= longer * (1 + 1e-9)


def test_a_bucket_as_large_as_the_gradients_beside_a_large_tensor():
    net = cluster(3, gpus_per_node=4, inside_gb_per_s=50, inside_latency_s=0)
    work = Job(gradient_bytes=1.009e9, step_s=3.434, batch=8, bucket_bytes=9.67e8)
    work = dataclasses.replace(work, largest_tensor_bytes=7.81e8)
    servers = ParameterServer(shards=7, dedicated=False, summed_inside=False)
    steps = [
        step_times(net, dataclasses.replace(work, gradient_bytes=size), servers, 5).step_s[0]
        for size in work.gradient_bytes * np.geomspace(1, 10, 50)
    ]
    assert (np.diff(steps) >= -1e-12).all()


@SOME
@given(runs())
def test_what_each_cause_costs_is_never_negative(run):
    asked, options = run
    found = bottleneck(*asked, stragglers=options["stragglers"])
    assert all(0 <= saved_s <= found.step_s * (1 + 1e-9) for saved_s in found.saved_s.values())
    same = step_times(*asked, stragglers=options["stragglers"]).step_s[0]
    assert found.step_s == pytest.approx(same)


@settings(derandomize=True, max_examples=25)
@given(runs())
def test_events_take_as_long_as_is_expected(run):
    asked, options = run
    events = run_events(*asked, **options, steps=100).step_s[0]
    expected = step_times(*asked, **options).step_s[0]
    # Where gradients queue while the last of their senders still compute, they queue less.
    least = 0.7 if isinstance(asked[2], ParameterServer) else 0.88
    assert least * expected < events < 1.13 * expected


@SOME
@given(
    nodes=st.integers(2, 7),
    gpus=st.integers(1, 4),
    missing=st.integers(0, 3),
    dedicated=st.booleans(),
    summed=st.booleans(),
    largest=st.floats(0, 1),
    shards=st.integers(1, 9),
)
def test_the_busiest_link_of_the_servers_carries_what_was_sent(
    nodes, gpus, missing, dedicated, summed, largest, shards
):
    """Every exchange of a client with a server, counted at both of its ends."""
    shards = shards if dedicated else nodes
    shard = max(1 / shards, largest if shards > 1 else 0)
    workers = nodes * gpus - min(missing, gpus - 1)
    clients = range(nodes) if summed else [worker // gpus for worker in range(workers)]
    busiest = 0.0
    for holder in range(shards):  # of the largest
        sizes = np.full(shards, (1 - shard) / max(1, shards - 1))
        sizes[holder] = shard
        sent, received = np.zeros((2, nodes + shards))
        for here, (server, size) in itertools.product(clients, enumerate(sizes)):
            there = server + nodes * dedicated
            if there != here:  # gradients there, weights back
                for place in (here, there):
                    sent[place] += size
                    received[place] += size
        assert sent.sum() == pytest.approx(received.sum())
        busiest = max(busiest, sent.max())
    net = cluster(nodes, gpus_per_node=gpus, inside_gb_per_s=1e9, inside_latency_s=0)
    servers = ParameterServer(shards, dedicated=dedicated, summed_inside=summed)
    cost = servers.communication(net, job(largest_tensor_bytes=1e9 * shard), workers)
    assert cost.total_s == pytest.approx(busiest, rel=1e-6)


def test_numpys_numbers_count_as_pythons_do():
    """Small ones overflow where one computes with them."""
    net = dataclasses.replace(PODS, nodes=np.int8(100), gpus_per_node=np.int8(8))
    assert net.gpus == 800 and net.spread_over(np.int8(9)) == (2, 8)
    work = job(gradient_bytes=np.int32(2_000_000_000), step_s=np.float16(1))
    small = step_times(net, work, WAYS[3], np.int8(100)).step_s
    assert small == step_times(net, job(gradient_bytes=2e9), WAYS[3], 100).step_s


def test_what_never_comes_takes_for_ever():
    dead = cluster(4, between_gb_per_s=1e-323)
    for combine in WAYS:
        scaling = step_times(dead, job(), combine, 4)
        assert scaling.step_s == [math.inf] and scaling.speedup == [0]
        found = bottleneck(dead, job(), combine, 4)
        assert found.cause == "bandwidth" and found.saved_s["bandwidth"] == math.inf
        assert found.saved_s["stragglers"] == 0


# --- stragglers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("workers", "gpus"), [(3, 1), (20, 1), (20, 8)])
@pytest.mark.parametrize(
    "stragglers",
    [Stragglers(spread=0.2), Stragglers(spread=0.1, slow_probability=0.05, slow_factor=3)],
    ids=["plain", "slow nodes"],
)
def test_expected_slowest_against_drawing_it(stragglers, workers, gpus):
    """The definition: draw everybody, sort, take the last that counts."""
    rng = np.random.default_rng(1)
    drawn = np.array([stragglers.draw(rng, workers, gpus) for _ in range(40_000)])
    means = np.sort(drawn, axis=1).mean(axis=0)
    for backup in (0, 2):
        found = expected_slowest(workers, stragglers, backup=backup, gpus_per_node=gpus)
        assert found == pytest.approx(means[workers - 1 - backup], rel=0.006)


@pytest.mark.parametrize(
    ("spread", "chance", "factor"),
    [(0.0, 0.1, 3), (0.0, 1e-3, 1000), (0.1, 1e-3, 1000), (1e-6, 0.3, 7)],
)
def test_expected_slowest_of_one_worker_is_its_mean(spread, chance, factor):
    """However far apart the two kinds of steps are, and however steep the distribution."""
    stragglers = Stragglers(spread=spread, slow_probability=chance, slow_factor=factor)
    assert expected_slowest(1, stragglers) == pytest.approx(stragglers.mean, rel=1e-5)


@pytest.mark.parametrize(("workers", "backup"), [(1, 0), (10, 0), (1000, 0), (100, 4)])
def test_the_closed_form_agrees_with_the_integral(workers, backup):
    # A slow node that never comes takes the long way round.
    plain = Stragglers(spread=0.1)
    numeric = dataclasses.replace(plain, slow_probability=1e-12, slow_factor=1.0001)
    found, wanted = (expected_slowest(workers, s, backup=backup) for s in (numeric, plain))
    assert found == pytest.approx(wanted, rel=1e-5)


@SOME
@given(
    workers=st.integers(1, 300),
    gpus=st.sampled_from([1, 8]),
    spread=st.floats(0, 1),
    chance=st.floats(1e-6, 0.9),
    factor=between(1, 1e6),
)
def test_expected_slowest_lies_between_the_mean_and_all_workers_together(
    workers, gpus, spread, chance, factor
):
    """Exactly known bounds, however far apart the two kinds of steps are."""
    stragglers = Stragglers(spread=spread, slow_probability=chance, slow_factor=factor)
    found = expected_slowest(workers, stragglers, gpus_per_node=gpus)
    without = expected_slowest(workers, Stragglers(spread=spread))
    nodes = math.ceil(workers / gpus)
    some_slow = 1 - (1 - chance) ** nodes
    all_of_them = without * (1 + some_slow * (factor - 1))  # were all slow when one node is
    one_alone = max(stragglers.mean, without, some_slow * factor * (1 - spread))
    assert one_alone * (1 - 1e-5) <= found <= all_of_them * (1 + 1e-5)
    slower = dataclasses.replace(stragglers, slow_factor=2 * factor)
    assert found <= expected_slowest(workers, slower, gpus_per_node=gpus) * (1 + 1e-5)
    assert found <= expected_slowest(workers + 1, stragglers, gpus_per_node=gpus) * (1 + 1e-5)


def test_a_steps_mean_and_spread_are_what_they_say():
    stragglers = Stragglers(spread=0.3)
    times = stragglers.draw(np.random.default_rng(0), 200_000)
    assert times.mean() == pytest.approx(1, rel=0.005)
    assert times.std() == pytest.approx(0.3, rel=0.02)
    grid = np.linspace(0.5, 3, 20)
    assert stragglers.cdf(grid) == pytest.approx((times[:, None] <= grid).mean(axis=0), abs=0.005)


# --- backup workers and staleness ---------------------------------------------------------------


def test_backup_workers_shorten_the_step_and_do_not_count():
    step = partial(step_times, NET, job(), Ring(), 50, stragglers=Stragglers(spread=0.2))
    runs = [step(mode=Synchronous(backup)) for backup in (0, 1, 4)]
    waits = [run.waiting_s[0] for run in runs]
    assert waits == sorted(waits, reverse=True) and len(set(waits)) == 3
    assert [run.counted[0] for run in runs] == [50, 49, 46]


def test_staleness_trades_waiting_for_old_weights():
    servers = ParameterServer(shards=16, dedicated=True)
    step = partial(step_times, NET, INCEPTION, servers, 16, stragglers=Stragglers(spread=0.3))
    waits = [step(mode=Asynchronous(bound)).waiting_s[0] for bound in (0, 1, 4, 16, None)]
    assert waits == sorted(waits, reverse=True) and waits[-1] == 0
    assert waits[0] == pytest.approx(step().waiting_s[0], rel=0.03), "no step ahead is synchronous"


def test_asynchronous_workers_cannot_pass_the_busiest_link():
    free = {"mode": Asynchronous(), "stragglers": STEADY}
    scaling = step_times(cluster(64), job(), ONE_SERVER, [1, 8, 64], **free)
    # A gigabyte an update over 1 GB/s: one update a second, however many workers.
    assert scaling.images_per_s[1:] == pytest.approx([10, 10], rel=1e-6)


def test_slow_nodes_slow_asynchronous_workers_by_their_mean():
    servers, light = ParameterServer(shards=64, dedicated=True), job(gradient_bytes=1e3)
    slow = Stragglers(spread=0, slow_probability=0.1, slow_factor=3)
    free = {"mode": Asynchronous(), "stragglers": slow}
    assert step_times(cluster(8), light, servers, 8, **free).step_s == pytest.approx([1.2], 1e-3)
    run = run_events(cluster(8), light, servers, 8, steps=2000, **free)
    assert run.step_s == pytest.approx([1.2], rel=0.02)


# --- discrete events against the expectation ----------------------------------------------------

FOUR, MANY = (ParameterServer(shards=shards, dedicated=True) for shards in (4, 16))
RAGGED = {"stragglers": Stragglers(spread=0.2)}
SLOW = {"stragglers": Stragglers(slow_probability=0.1, slow_factor=3), "steps": 1000}
SLOWER = {"stragglers": Stragglers(slow_probability=0.05, slow_factor=5), "steps": 200}
BOUND, FREE = {"mode": Asynchronous(2)}, {"mode": Asynchronous()}
SAME = {
    "all-reduce": (NET, Ring(), [1, 8, 64], {}),
    "all-reduce, slow nodes": (PODS, Ring(), [16, 64], SLOW),
    "servers on the nodes": (NET, ParameterServer(), [2, 16, 64], {}),
    "GPUs summed inside": (PODS, ParameterServer(), [8, 32], {}),
    "one server: incast": (NET, ONE_SERVER, [2, 4, 8, 16], {}),
    "four servers": (NET, FOUR, [2, 8, 32], {}),
    "all-reduce, backup workers": (NET, Ring(), [8], {"mode": Synchronous(4), **RAGGED}),
    "backup workers": (NET, MANY, [8, 16], {"mode": Synchronous(2), **RAGGED}),
    "asynchronous": (NET, FOUR, [4, 16, 48], FREE),
    "bounded staleness": (NET, MANY, [4, 16], BOUND | RAGGED),
    "bounded staleness, slow nodes": (NET, MANY, [16], BOUND | SLOWER),
    "bounded staleness, incast": (
        NET,
        ONE_SERVER,
        [12],
        {"mode": Asynchronous(1), "stragglers": Stragglers(spread=0.5)},
    ),
    "no staleness, incast": (NET, ONE_SERVER, [4], {"mode": Asynchronous(0)}),
    "asynchronous, GPUs summed inside": (PODS, ParameterServer(), [32], FREE | RAGGED),
    "own links, backup workers": (NET.with_link_share(0.05), MANY, [6], {"mode": Synchronous(3)}),
}


@pytest.mark.parametrize("case", SAME)
def test_discrete_events_agree_with_the_expectation(case):
    net, combine, counts, options = SAME[case]
    events = run_events(net, INCEPTION, combine, counts, **{"steps": 60, **options})
    rest = {name: value for name, value in options.items() if name != "steps"}
    expected = step_times(net, INCEPTION, combine, counts, **rest)
    assert events.step_s == pytest.approx(expected.step_s, rel=0.06)
    assert (events.counted == expected.counted).all()
    assert min(events.waiting_s.min(), events.communication_s.min()) >= 0


def test_what_backup_workers_send_early_fills_the_servers_link_all_the_same():
    net, steady = cluster(10), {"mode": Synchronous(7), "stragglers": Stragglers(spread=0.02)}
    for size, steps_s in ((1e9, (3.44, 4.75, 6.5, 9.65)), (1e8, (0.744, 0.669, 0.65, 0.965))):
        for hidden, wanted_s in zip((0, 0.25, 0.5, 1), steps_s, strict=True):
            work = job(
                gradient_bytes=size, step_s=0.45, hidden_share=hidden, bucket_bytes=size / 20
            )
            for ran in (step_times, partial(run_events, steps=60)):
                found = ran(net, work, ONE_SERVER, 10, **steady)
                assert found.step_s == pytest.approx([wanted_s], rel=0.05), (size, hidden)


def test_staleness_is_counted_and_bounded():
    ragged = {"stragglers": Stragglers(spread=0.3), "steps": 200}

    def staleness(bound):
        return run_events(NET, INCEPTION, MANY, 8, mode=Asynchronous(bound), **ragged).staleness[0]

    # Seven others update once in the meantime; in lockstep they do so one after another.
    assert staleness(None) == pytest.approx(7, abs=0.2)
    assert staleness(0) == pytest.approx(3.5, abs=0.1)
    assert staleness(0) < staleness(1) < staleness(None)
    assert run_events(NET, INCEPTION, MANY, 8, steps=5).staleness is None
    # GPUs that are summed inside their node are one client: four nodes, three others.
    nodes = run_events(PODS, INCEPTION, ParameterServer(), 32, mode=Asynchronous(), **ragged)
    assert nodes.staleness[0] == pytest.approx(3, abs=0.2)


def test_the_seed_decides():
    first, again, other = (
        run_events(NET, INCEPTION, MANY, 8, steps=5, seed=seed).step_s for seed in (1, 1, 2)
    )
    assert first == again != other


# --- what holds it back -------------------------------------------------------------------------

VGG = Job(gradient_bytes=553e6, step_s=0.4, batch=64, largest_tensor_bytes=411e6)
SMALL = Job(gradient_bytes=5e5, step_s=2e-3, batch=100)
UNSTEADY = Stragglers(spread=0.1, slow_probability=0.1, slow_factor=5)
HELD_BACK = {
    "compute": (INCEPTION, Ring(), 8, None),
    "bandwidth": (VGG, Ring(), 16, None),
    "latency": (SMALL, Ring(), 256, None),
    "incast": (INCEPTION, ONE_SERVER, 64, None),
    "stragglers": (INCEPTION, HalvingDoubling(), 64, UNSTEADY),
}


@pytest.mark.parametrize("cause", HELD_BACK)
def test_each_cause_is_named_where_it_holds_back(cause):
    work, combine, workers, stragglers = HELD_BACK[cause]
    found = bottleneck(NET, work, combine, workers, stragglers=stragglers)
    assert found.cause == cause
    assert set(found.saved_s) == set(HELD_BACK) and min(found.saved_s.values()) >= 0
    step = step_times(NET, work, combine, workers, stragglers=stragglers)
    assert found.step_s == pytest.approx(step.step_s[0])
    assert found.saved_s["stragglers"] == pytest.approx(step.waiting_s[0])


# --- errors that teach --------------------------------------------------------------------------


def step_of(workers, combine=WAYS[0], **options):
    return step_times(cluster(4), job(), combine, workers, **options)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (partial(Cluster, nodes=0), ValueError, "nodes must be at least 1, got 0"),
        (partial(Cluster, nodes=2), ValueError, "2 nodes with 1 GPUs need links: give between_gb"),
        (
            partial(Cluster, nodes=1, gpus_per_node=4, inside_gb_per_s=20),
            ValueError,
            "4 GPUs need links: give inside_latency_s",
        ),
        (partial(cluster, 2, between_gb_per_s=0), ValueError, "between_gb_per_s must be above 0"),
        (partial(cluster, 2, between_latency_s=-1), ValueError, "between_latency_s must be at"),
        (partial(job, step_s=0), ValueError, "step_s must be above 0"),
        (partial(job, batch=1.5), TypeError, "batch must be a whole number"),
        (partial(job, hidden_share=1.1), ValueError, "hidden_share"),
        (partial(job, largest_tensor_bytes=2e9), ValueError, "larger than all gradients"),
        (partial(Stragglers, spread=-0.1), ValueError, "spread must be at least 0"),
        (partial(Stragglers, slow_probability=1), ValueError, "slow_probability"),
        (partial(Stragglers, slow_factor=0.5), ValueError, "slow_factor must be at least 1"),
        (partial(Synchronous, -1), ValueError, "backup must be at least 0"),
        (partial(Asynchronous, -1), ValueError, "staleness must be at least 0"),
        (partial(ParameterServer, {2: 0}), ValueError, "shards must be at least 1"),
        (partial(step_of, []), ValueError, "workers is empty"),
        (partial(step_of, 5), ValueError, "5 workers need 5 GPUs"),
        (partial(step_of, 2.0), TypeError, "whole number|iterable"),
        (partial(step_of, 0), ValueError, "workers must be at least 1"),
        (partial(step_of, 2, mode=Synchronous(2)), ValueError, "with 2 backup .* at least 3"),
        (
            partial(step_times, PODS, job(), WAYS[3], 16, mode=Synchronous(2)),
            ValueError,
            "a node that sums the gradients of 8 GPUs can leave none out",
        ),
        (partial(job, bucket_bytes=1e-308), ValueError, "too few for a bucket"),
        (partial(step_of, 2, **FREE), ValueError, "need a ParameterServer; Ring is an all-reduce"),
        (partial(run_events, NET, job(), Ring(), 2, steps=0), ValueError, "steps must be"),
        (partial(expected_slowest, 2, STEADY, backup=2), ValueError, "workers must be at least 3"),
        (partial(expected_slowest, 2, STEADY, gpus_per_node=0), ValueError, "gpus_per_node must"),
        (partial(all_reduce_schedule, "star", 4), ValueError, "way must be one of 'ring', 'tree'"),
        (partial(all_reduce_schedule, "ring", 1), ValueError, "workers must be at least 2"),
    ],
)
def test_errors_say_what_came_and_what_to_do(make, error, says):
    with pytest.raises(error, match=says):
        make()


def test_constants_keep_their_provenance():
    kinds = {name: constant.provenance for name, constant in constants().items()}
    assert kinds["ec2_high"] is Provenance.SIMULATED, "an assumption"
    assert kinds["nvlink1"] is Provenance.PUBLISHED and kinds["spread"] is Provenance.COMPUTED


def test_the_computed_constants_follow_from_what_was_published():
    # Synchronous steps 10 % longer at 100 workers; 100 x 100 MB from 16 servers in 613 ms.
    assert expected_slowest(100, Stragglers()) == pytest.approx(1.1)
    google = cluster(100, between_gb_per_s=constants()["grpc_2017"].median)
    fetch = MANY.communication(google, job(gradient_bytes=1e8), 100)
    assert fetch.total_s == pytest.approx(0.613)
