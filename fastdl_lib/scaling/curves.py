"""Published scaling curves, and how far the simulator is from them.

Each curve comes with its cluster, its job and its way to combine, as far as the source tells. Three
predictions are made, all by the same mechanism (``simulator.py``) with the same defaults:

* **blind**: from datasheets, published rates of the transport, and one GPU's speed;
* **fitted**: two named parameters, :data:`PARAMETERS`, found on the first half of the points;
* **unseen**: that fit on the points it has not seen.

How blind is blind? The mechanism was chosen with these 80 points in sight: that the two directions
of a link do not add up, and the hidden share, 0.75 out of 0.7 to 0.9 tried, the same for all. The
68 points of ``published_curves(held_out=True)`` were run once that stood, and nothing was changed
after them; but that a node's GPUs share their way into memory had been compared by hand with two
of those curves (GCE: AlexNet, VGG16).

A timeline of the layers in place of the hidden share (when each gradient is ready, how long it
takes to send) was tried on AlexNet and VGG16. It hides nearly all, since nine tenths of the bytes
are the last layers', whose gradients come first, and takes both further away: AlexNet on 8 GPUs of
a DGX-1 from 25 % to 29 %, VGG16 (batch 32) from 28 % to 35 %. The measured step is longer there
by more than the whole communication takes, so no way to hide less explains it either.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fastdl_lib.measuring.evidence import Column, Provenance, Table
from fastdl_lib.measuring.published import published
from fastdl_lib.scaling.clusters import Cluster, Combine, Job, ParameterServer, Ring, constants
from fastdl_lib.scaling.simulator import Stragglers, bottleneck, step_times

PARAMETERS: Mapping[str, tuple[float, float]] = {"spread": (0.001, 0.3), "link_share": (0.2, 1.0)}
"""What :func:`calibrate` may change, from least to most.

``spread``: of a worker's step times. ``link_share``: the part of the links' stated rates that the
gradients get; 1 before anything is known.
"""

_NOISE = 0.03  # relative error of a published speed; assumption
_PRIOR = math.log(2)  # a parameter is known within a factor of two before the fit; assumption


@dataclasses.dataclass(frozen=True)
class Curve:
    """A measured scaling curve and what was measured.

    Args:
        workers: GPUs of each point, rising; the first, mostly 1, is what the others are held
            against.
        speedup: measured, of each point.

    Raises: ValueError: fewer than two points, or they do not rise, or lack a speed-up.
    """

    name: str
    cluster: Cluster
    job: Job
    combine: Combine
    workers: tuple[int, ...]
    speedup: tuple[float, ...]

    def __post_init__(self) -> None:
        rising = list(self.workers) == sorted(set(self.workers))
        if not rising or not 2 <= len(self.workers) == len(self.speedup):
            raise ValueError(
                f"{self.name}: give two or more numbers of workers that rise, each with its "
                f"speed-up; got {self.workers} and {self.speedup}."
            )

    @property
    def seen(self) -> int:
        """How many points a fit sees: the first half, at least 2."""
        return max(2, len(self.workers) // 2)

    def predicted(self, *, spread: float | None = None, link_share: float = 1.0) -> np.ndarray:
        """Simulated speed-ups, (points,) float64, from the first point on; by default blind."""
        cluster = self.cluster.with_link_share(link_share)
        stragglers = Stragglers() if spread is None else Stragglers(spread=spread)
        scaling = step_times(cluster, self.job, self.combine, self.workers, stragglers=stragglers)
        return self.speedup[0] * scaling.images_per_s / scaling.images_per_s[0]

    def errors_pct(self, predicted: np.ndarray) -> np.ndarray:
        """Relative errors in percent, (points - 1,): the first point is given, so not counted."""
        return 100 * (np.asarray(predicted) / self.speedup - 1)[1:]


def calibrate(curve: Curve) -> dict[str, float]:
    """Find :data:`PARAMETERS` on the first half of a curve's points.

    Least squares of the logarithms, with each parameter held near its default within a factor of
    two: where the points say nothing about a parameter, it stays what the datasheet says.

    >>> sorted(calibrate(published_curves()[0]))
    ['link_share', 'spread']
    """
    half = slice(curve.seen)
    seen = dataclasses.replace(curve, workers=curve.workers[half], speedup=curve.speedup[half])
    measured = np.log(seen.speedup)
    defaults = np.log([Stragglers().spread, 1.0])

    def loss(logs: Sequence[float]) -> float:
        parameters = dict(zip(PARAMETERS, np.exp(logs), strict=True))
        misfit = (np.log(seen.predicted(**parameters)) - measured) / _NOISE
        away = (np.array(logs) - defaults) / _PRIOR
        return float(np.sum(misfit**2) + np.sum(away**2))

    low, high = np.log(list(PARAMETERS.values())).T
    best, width = (low + high) / 2, (high - low) / 2
    for _ in range(5):  # a grid around the best so far, each a quarter as wide
        axes = np.linspace(np.maximum(low, best - width), np.minimum(high, best + width), 9).T
        best, width = np.array(min(itertools.product(*axes), key=loss)), width / 4
    return dict(zip(PARAMETERS, np.exp(best).tolist(), strict=True))


@functools.cache
def published_curves(held_out: bool = False) -> tuple[Curve, ...]:
    """The measured curves of ``data/published/``, each with its cluster, job and way to combine.

    Args:
        held_out: instead, the curves of single machines that were kept apart.

    >>> sum(len(curve.workers) for curve in published_curves())
    80
    """
    names = ("scaling_tensorflow_2017", "scaling_cscs_2017", "scaling_tensorflow_0_8")
    if held_out:
        names = ("scaling_tensorflow_2017_single",)
    clusters: dict[str, dict[str, Any]] = {}
    for row in published("scaling_clusters").rows:
        fields = clusters.setdefault(row["gpu"], {"name": row["cluster"]})
        fields[row["quantity"]] = row["value"]
    curves: dict[str, list[Mapping[str, Any]]] = {}
    for name in names:
        for row in published(name).rows:
            curves.setdefault(row["curve"], []).append(row)
    return tuple(
        _curve_from(name, rows, Cluster(**clusters[rows[0]["gpu"]]))
        for name, rows in curves.items()
    )


def _curve_from(name: str, rows: list[Mapping[str, Any]], cluster: Cluster) -> Curve:
    first, known = rows[0], constants()
    if "images_per_s" not in first:  # speed-ups alone were published
        batch, step_s = int(known["k40_batch"].median), known["k40_step"].median
    else:
        batch = first["batch_per_gpu"]
        step_s = batch / first["images_per_s"]
    if first["mode"].startswith("replicated (NCCL)"):
        combine = Ring()
    elif "parameter_servers" not in first:
        combine = ParameterServer(shards=int(known["osdi_servers"].median), dedicated=True)
    else:
        combine = ParameterServer({row["gpus"]: row["parameter_servers"] for row in rows})
    (largest,) = published("scaling_largest_tensors").select(network=first["network"])
    job = Job(
        name=f"{first['network']}, batch {batch}",
        gradient_bytes=1e6 * first["parameters_mb"],
        step_s=step_s,
        batch=batch,
        largest_tensor_bytes=largest["bytes"],
    )
    workers, speedup = (tuple(row[key] for row in rows) for key in ("gpus", "speedup"))
    return Curve(name, cluster, job, combine, workers, speedup)


def error_table(curves: Iterable[Curve] | None = None) -> Table:
    """Errors of the simulator, curve by curve, in percent of the measured speed-up.

    *Blind* knows datasheets and the speed of one GPU. *Fitted* knows the first half of the points;
    its error over all of them, and over the half it has not seen. A curve's first point is given,
    so it counts nowhere. The last row takes all points together.

    >>> error_table().rows[-1]["curve"]
    'all points'
    """
    rows, every = [], {"blind": [], "fitted": [], "unseen": []}
    for curve in published_curves() if curves is None else curves:
        parameters = calibrate(curve)
        fitted = np.abs(curve.errors_pct(curve.predicted(**parameters)))
        errors = {
            "blind": np.abs(curve.errors_pct(curve.predicted())),
            "fitted": fitted,
            "unseen": fitted[curve.seen - 1 :],
        }
        for key, values in errors.items():
            every[key].extend(values)
        last = curve.workers[-1]
        cause = bottleneck(curve.cluster, curve.job, curve.combine, last).cause
        rows.append(
            {"curve": curve.name, **parameters, "gpus": last, "cause": cause} | _summary(errors)
        )
    nothing = {"spread": None, "link_share": None, "gpus": None, "cause": ""}
    rows.append({"curve": "all points", **nothing} | _summary(every))
    made = Provenance.SIMULATED
    columns = (
        Column("curve"),
        Column("blind_median", "blind, median", "%", made),
        Column("blind_worst", "worst", "%", made),
        Column("spread", "fitted spread", provenance=made),
        Column("link_share", "link share", provenance=made),
        Column("fitted_median", "fitted, median", "%", made),
        Column("unseen_median", "unseen, median", "%", made),
        Column("unseen_worst", "worst", "%", made),
        Column("gpus", "GPUs"),
        Column("cause", "held back there by", provenance=made),
    )
    return Table(columns, tuple(rows), "Errors of simulated speed-ups against published ones")


def _summary(errors: Mapping[str, Sequence[float]]) -> dict[str, float | None]:
    found = {}
    for key, values in errors.items():
        some = len(values) > 0  # a curve of two points has none that a fit has not seen
        found[f"{key}_median"] = float(np.median(values)) if some else None
        found[f"{key}_worst"] = float(np.max(values)) if some else None
    return found
