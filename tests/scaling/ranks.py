"""What the ranks in test_workers.py do: a program of its own, so that they start without pytest."""

import json
import os
import re
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np

from fastdl_lib.core import threads
from fastdl_lib.core.arrays import to_gpu
from fastdl_lib.core.datasets import mnist
from fastdl_lib.core.pretend_gpu import pretend_gpu
from fastdl_lib.nn.checkpoints import digest
from fastdl_lib.nn.layers import Conv2d, Dropout, Flatten, Linear, MaxPool2d, ReLU
from fastdl_lib.nn.network import Network
from fastdl_lib.nn.optimizers import SGD, Adam, warmup_cosine
from fastdl_lib.nn.training import fit
from fastdl_lib.nn.zoo import deep_convnet
from fastdl_lib.precision.formats import FLOAT16, FLOAT64
from fastdl_lib.precision.mixed import DynamicLossScale, MixedPrecision, Precision, in_precision
from fastdl_lib.scaling import workers
from fastdl_lib.scaling.workers import MpiWorkers


def toy(seed=0, dropout=True):
    """Every kind of layer that a rank's share of the batch could disturb; in float64."""
    rng = np.random.default_rng(seed)
    layers = [
        ("conv", Conv2d(1, 6, 3, padding=1, rng=rng)),
        ("relu", ReLU()),
        ("drop1", Dropout(0.25, seed=seed)),
        ("conv2", Conv2d(6, 6, 3, padding=1, groups=2, rng=rng)),
        ("pool", MaxPool2d(2)),
        ("flatten", Flatten()),
        ("drop2", Dropout(0.5, seed=seed + 1)),
        ("fc", Linear(6 * 4 * 4, 3, rng=rng)),
    ]
    layers = [(name, layer) for name, layer in layers if dropout or not name.startswith("drop")]
    return Network("toy", layers, (1, 8, 8)).astype(np.float64)


def toy_data(count=65, seed=0):
    rng = np.random.default_rng(seed)
    return rng.random((count, 1, 8, 8)), rng.integers(0, 3, count)


def difference(one, other):
    """The largest difference of two networks' weights."""
    pairs = zip(one.parameters.values(), other.parameters.values(), strict=True)
    return max(float(abs(a - b).max()) for a, b in pairs)


# What a batch's division among ranks could get wrong: 65 images in batches of 16 leave one image
# for the last step, so that some ranks have none; no batch of 7 divides by 2 or 4.
CASES = {
    "sgd": {"optimizer": lambda: SGD(0.1, momentum=0.9, weight_decay=1e-3)},
    "adam": {"optimizer": lambda: Adam(0.01), "batch": 7},
    "every gradient alone": {"bucket_bytes": 8},
    "one bucket": {"bucket_bytes": 10**9},
    # A scale far too large, so that steps are skipped first, on all ranks alike.
    "float16": {
        "optimizer": lambda: MixedPrecision(
            SGD(0.1, 0.9), FLOAT16, loss_scale=DynamicLossScale(2.0**24, interval=2)
        ),
    },
    "rounded by chance": {
        "make": lambda: in_precision(toy(), Precision(FLOAT16, FLOAT64, FLOAT64), stochastic=True),
        "optimizer": lambda: MixedPrecision(SGD(0.1), FLOAT16, stochastic=True),
    },
    "no overlap": {"overlap": False},
}
EVERY_SIZE = ("sgd", "adam", "rounded by chance")  # the others concern how two ranks send
PLAIN = {
    "make": toy,
    "optimizer": lambda: SGD(0.1),
    "batch": 16,
    "bucket_bytes": 1000,
    "overlap": True,
}


def weights():
    """All that needs no job of its own, on all ranks."""
    with MpiWorkers() as ranks:
        found = {"same": same_weights(ranks), "float32": float32(ranks)}
        if ranks.size == 2:
            found |= {"gpu": [on_gpu(ranks, size) for size in (8, 4_000_000)]}
            found |= {"one core": one_core(ranks), "shared memory": shared_memory()}
    return found if ranks.rank == 0 else None


def same_weights(ranks):
    """Each case on all ranks, and alone on rank 0, which compares."""
    found = {}
    x, labels = toy_data()
    for name in CASES if ranks.size == 2 else EVERY_SIZE:
        options = PLAIN | CASES[name]
        ranks.bucket_bytes, ranks.overlap = options["bucket_bytes"], options["overlap"]
        run = {"epochs": 3, "batch": options["batch"], "shift": 1, "seed": 5, "progress": False}
        run |= {"schedule": warmup_cosine(), "validation": toy_data(10, seed=1)}
        together, alone = options["make"](), options["make"]()
        # begin() must bring rank 0's weights.
        if ranks.rank:
            together.parameters["fc.weight"][...] = ranks.rank
        fresh = options["optimizer"]
        history = fit(together, x, labels, optimizer=fresh(), workers=ranks, **run)
        names = ranks.of_all(int(digest(together.parameters.values())[:12], 16))
        if ranks.rank == 0:
            wanted = fit(alone, x, labels, optimizer=fresh(), **run)
            epochs = list(zip(history.epochs, wanted.epochs, strict=True))
            facts = ("loss", "accuracy", "validation_accuracy")
            found[name] = {
                "weights": difference(together, alone),
                "moved": difference(toy(), alone),
                "epochs": [[getattr(e, f) for f in facts for e in both] for both in epochs],
                "all ranks alike": len(set(names)) == 1,
                "dropout draws alone again": dropout_off(together, alone, x[:5]),
            }
    return found


def dropout_off(one, other, x):
    """How far apart two networks' outputs are while their Dropout draws from the same seed."""
    for network in (one, other):
        for seed, layer in enumerate(network.layers.values()):
            layer.reseed(seed)
    return float(abs(one.forward(x, training=True) - other.forward(x, training=True)).max())


def float32(ranks):
    """How far apart all ranks and one are after 12 steps, and how far the weights have moved.

    Gradients added up in float32 turned a ReLU of this seed: 9 % of the way.
    """
    seed, (x, labels) = 3, (array[:192] for array in mnist("test"))
    networks = [deep_convnet(seed), deep_convnet(seed)]
    run = {"epochs": 1, "batch": 16, "progress": False}
    fit(networks[0], x, labels, optimizer=Adam(1e-3), workers=ranks, **run)
    if ranks.rank > 0:
        return None
    fit(networks[1], x, labels, optimizer=Adam(1e-3), **run)
    return difference(*networks), difference(networks[1], deep_convnet(seed))


def on_gpu(ranks, bucket_bytes):
    """Arrays of the stand-in for CuPy on all ranks, against the CPU's alone."""
    x, labels = toy_data()
    ranks.bucket_bytes = bucket_bytes
    networks = [toy(dropout=False), toy(dropout=False)]
    run = {"epochs": 2, "batch": 16, "progress": False, "optimizer": SGD(0.1, 0.9)}
    with pretend_gpu():
        networks[0].to_gpu()
        fit(networks[0], to_gpu(x), to_gpu(labels), workers=ranks, **run)
        there = all(type(w).__module__ == "cupy" for w in networks[0].parameters.values())
        networks[0].to_cpu()
    fit(networks[1], x, labels, **run | {"optimizer": SGD(0.1, 0.9)})
    moved = difference(networks[1], toy(dropout=False))
    return {"weights": difference(*networks), "moved": moved, "on the GPU": there}


def one_core(ranks):
    """How often a waiting rank leaves its core to others, in a container of so many cores."""
    sleep, slept = time.sleep, {}
    for cores in (1, 2):
        two_cores = mock.patch.object(os, "sched_getaffinity", lambda _: {0, 1}, create=True)
        quota = mock.patch.object(threads, "container_limit", lambda _, cores=cores: cores)
        with two_cores, quota:
            few = MpiWorkers()
        with mock.patch.object(time, "sleep") as pauses:
            if ranks.rank:
                sleep(0.1)
            few.barrier()
            slept[cores] = pauses.call_count
    return slept


def shared_memory():
    """Files that would stay if the job were killed now."""
    mapped = re.findall(r"/dev/shm/\S+", Path("/proc/self/maps").read_text())
    return [name for name in mapped if os.path.exists(name)]


def disagree():
    """Ranks that call fit with different seeds."""
    x, labels = toy_data()
    with MpiWorkers() as ranks:
        fit(toy(), x, labels, epochs=1, optimizer=SGD(0.1), seed=ranks.rank, workers=ranks)


def deadlock():
    """Rank 0 waits for a message that nobody sends, the others for rank 0."""
    workers.LONGEST_WAIT = 3
    with MpiWorkers(patience_s=0.5) as ranks:
        if ranks.rank == 0:
            ranks.wait([ranks.comm.Irecv(np.empty(1), 1, 99)])
        ranks.barrier()


def leave():
    """Rank 1 goes without a word, past every guard."""
    with MpiWorkers() as ranks:
        ranks.barrier()
        if ranks.rank == 1:
            os._exit(0)
        while True:
            ranks.barrier()


if __name__ == "__main__":
    with threads.blas_threads(1):
        result = globals()[sys.argv[1]]()
    if result:
        Path(sys.argv[-1]).write_text(json.dumps(result), encoding="utf-8")
