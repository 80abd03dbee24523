"""How fast the scaling simulator is, and how far from published curves.

    python benchmarks/cluster_speed.py
    python benchmarks/cluster_speed.py --errors        # the errors alone: no clock involved

Times are those of one core of this machine; the ratio of the two ways to simulate is what to quote.
The aims: errors of 20 % (blind), 5 % (fitted), 10 % (unseen) in the median, and 30 % for the worst
unseen point.
"""

import argparse
import dataclasses

from fastdl_lib.measuring.evidence import Column, Provenance, Table
from fastdl_lib.measuring.machine import machine_card
from fastdl_lib.measuring.timing import benchmark
from fastdl_lib.scaling.clusters import Cluster, Job, ParameterServer, Ring
from fastdl_lib.scaling.curves import Curve, error_table, published_curves
from fastdl_lib.scaling.events import run_events
from fastdl_lib.scaling.simulator import Stragglers, bottleneck, step_times

NET = Cluster(nodes=1000, between_gb_per_s=1.25, between_latency_s=50e-6)
JOB = Job(gradient_bytes=95e6, step_s=0.45, batch=64)
ALL = range(1, 1001)
SERVERS, WORKERS, STEPS = ParameterServer(), 100, 50


def times(budget_s: float) -> Table:
    """The simulator's ways, timed on one thread."""
    slow = Stragglers(slow_probability=0.01, slow_factor=5)
    runs = {
        "expectation, 1 to 1000 workers": lambda: step_times(NET, JOB, Ring(), ALL),
        f"expectation, {WORKERS} workers, slow nodes": lambda: step_times(
            NET, JOB, SERVERS, WORKERS, stragglers=slow
        ),
        f"expectation, {WORKERS} workers": lambda: step_times(NET, JOB, SERVERS, WORKERS),
        f"discrete events, {WORKERS} workers x {STEPS} steps": lambda: run_events(
            NET, JOB, SERVERS, WORKERS, steps=STEPS
        ),
    }
    machine = machine_card()
    measured = Provenance.MEASURED
    rows = []
    for name, run in runs.items():
        took = benchmark(run, name=name, budget_s=budget_s, threads=1, machine=machine)
        rows.append({"what": name, "ms": took.median, "best": min(took.samples)})
    columns = (
        Column("what"),
        Column("ms", "median", "ms", measured),
        Column("best", "best", "ms", measured),
    )
    return Table(columns, tuple(rows), f"Times on one thread of {machine.cpu}, {machine.date}")


def agreement() -> str:
    """How far the events' mean step is from the expectation."""
    drawn = run_events(NET, JOB, SERVERS, WORKERS, steps=STEPS).step_s[0]
    off = abs(drawn / step_times(NET, JOB, SERVERS, WORKERS).step_s[0] - 1)
    return f"The events' step is within {100 * off:.2f} % of the expectation (simulated)."


def without(curve: Curve) -> dict[str, float]:
    """Blind speed-up at the most GPUs, each mechanism taken away once."""

    def at_last(**changes) -> float:
        return float(dataclasses.replace(curve, **changes).predicted()[-1])

    cluster, job = curve.cluster, curve.job
    wire = dataclasses.replace(cluster, endpoint_gb_per_s=None)
    each = dataclasses.replace(curve.combine, summed_inside=False)
    return {
        "all": at_last(),
        "whole": at_last(job=dataclasses.replace(job, largest_tensor_bytes=0)),
        "wire": at_last(cluster=wire),
        "spread": float(curve.predicted(spread=1e-6)[-1]),
        "each": at_last(combine=each),
    }


def explanations() -> Table:
    """What explains the curves with many nodes: the prediction with a mechanism left out."""
    made, seen = Provenance.SIMULATED, Provenance.PUBLISHED
    rows = []
    for curve in published_curves():
        if curve.workers[-1] < 100:
            continue
        found = bottleneck(curve.cluster, curve.job, curve.combine, curve.workers[-1])
        rows.append(
            {"curve": curve.name, "gpus": curve.workers[-1], "measured": curve.speedup[-1]}
            | without(curve)
            | {"cause": found.cause}
        )
    columns = (
        Column("curve"),
        Column("gpus", "GPUs"),
        Column("measured", "speed-up", provenance=seen),
        Column("all", "blind", provenance=made),
        Column("whole", "tensors cut up", provenance=made),
        Column("wire", "at the wire's rate", provenance=made),
        Column("spread", "no stragglers", provenance=made),
        Column("each", "not summed inside", provenance=made),
        Column("cause", "held back by", provenance=made),
    )
    return Table(columns, tuple(rows), "Blind speed-ups, with one mechanism taken away")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--errors", action="store_true", help="print the errors alone")
    parser.add_argument("--budget", type=float, default=2.0, help="seconds for each timing")
    arguments = parser.parse_args()
    if not arguments.errors:
        print(times(arguments.budget), agreement(), sep="\n\n", end="\n\n")
    print(error_table())
    print("\nHeld out: single machines of the TensorFlow benchmarks.")
    print(error_table(published_curves(held_out=True)))
    print(f"\n{explanations()}")


if __name__ == "__main__":
    main()
