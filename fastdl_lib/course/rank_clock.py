"""The clock of the programs that chapter 04 writes for two ranks."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from fastdl_lib.core.threads import blas_threads

MESSAGE_S, BYTE_S = 1e-3, 1 / 62.5e6  # what the brake takes: half a Gbit/s
ROUNDS = 6


def run(step: Callable[..., Any], job: ModuleType) -> None:
    """Time a training step in turn with one rank alone and with halves that send nothing, then
    compare its gradients with those of one rank; rank 0 writes all of it to the file that is the
    program's last word, as JSON: [milliseconds of each kind, how far off, ``job.seen``].

    ``job`` has what the programs share: ``comm``, ``network``, the ``whole`` batch and this rank's
    ``mine``, the ``brake``, and ``seen``. The first of six rounds warms up.
    """

    def slowest_ms(work: Callable[..., Any], part: list[np.ndarray]) -> float:
        job.comm.Barrier()
        start_s = time.perf_counter()
        work(*part)
        return max(job.comm.allgather(1e3 * (time.perf_counter() - start_s)))

    alone = job.network.loss_and_gradients
    rounds = []
    with blas_threads(1):
        for _ in range(ROUNDS):
            job.brake.update(message_s=0.0, byte_s=0.0)
            first = (lambda *_: None) if job.comm.rank else alone
            half = alone, job.mine  # twice: the first time a rank comes from waiting
            works = (first, job.whole), half, half, (step, job.mine)
            one_ms, _, *others_ms = (slowest_ms(*work) for work in works)
            rounds.append([one_ms, *others_ms])
            job.brake.update(message_s=MESSAGE_S, byte_s=BYTE_S)
            job.seen.clear()
            rounds[-1].append(slowest_ms(step, job.mine))
        shared = {name: gradient.copy() for name, gradient in job.network.gradients.items()}
        alone(*job.whole)
    right = job.network.gradients
    off = max(float(abs(shared[name] - g).max() / abs(g).max()) for name, g in right.items())
    kinds = ("one rank, whole batch", "each half, no sending", "two ranks", "two ranks, brake on")
    times = dict(zip(kinds, zip(*rounds[1:], strict=True), strict=True))
    if job.comm.rank == 0:
        Path(sys.argv[-1]).write_text(json.dumps([times, off, job.seen]), encoding="utf-8")
