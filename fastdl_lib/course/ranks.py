"""The MPI jobs of chapter 04: a command that the ranks run, and its runs from a notebook.

    mpiexec -n 2 python -m mpi4py -m fastdl_lib.course.ranks train --images 10000 --epochs 1

starts two ranks on this machine. On a cluster it is the same command with ``--hostfile``, or under
``srun`` (with ``--kill-on-bad-exit=1``). ``--help`` names the jobs. ``-m mpi4py`` ends the job
where a rank fails before ``MpiWorkers`` are at work; after that they do it themselves, and name the
rank that failed, was killed, or hangs.

``python -m fastdl_lib.course.record ranks`` runs what chapter 04 shows, and writes
``data/recordings/ranks.json``, which it replays where MPI is missing.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from fastdl_lib.core.arrays import gpu_available, keep_freed_memory, synchronize, to_gpu, use_gpu
from fastdl_lib.core.checks import check_number
from fastdl_lib.core.datasets import data_folder, mnist, photos
from fastdl_lib.core.files import check_destination, whole_file
from fastdl_lib.core.threads import blas_threads, blas_threads_now, usable_cores
from fastdl_lib.measuring.disturbance import WAITED_LIMIT
from fastdl_lib.measuring.evidence import Measurement, Provenance, format_number
from fastdl_lib.measuring.machine import MachineCard, machine_card
from fastdl_lib.measuring.recordings import Recording, read_recording
from fastdl_lib.measuring.timing import time_scale
from fastdl_lib.nn.checkpoints import digest
from fastdl_lib.nn.layers import Flatten, Linear
from fastdl_lib.nn.network import Network
from fastdl_lib.nn.optimizers import SGD, Adam, warmup_cosine
from fastdl_lib.nn.training import History, fit
from fastdl_lib.nn.zoo import DROPOUT, alexnet, deep_convnet
from fastdl_lib.scaling.mpi import mpi_status, run_program
from fastdl_lib.scaling.workers import PATIENCE_S, MpiWorkers

Array = Any  # numpy.ndarray or cupy.ndarray

RECORDING = "ranks.json"
ALEXNET_BYTES = 4 * 60_965_224  # of its gradients in float32
MNIST_IMAGES = 60_000
PHOTO_BYTES = 4 * 3 * 227 * 227


# --- from a notebook ----------------------------------------------------------------------------

_SHORT = "train --images 2000 --test 1000 --batch 100 --optimizer sgd --learning-rate 0.02"

RANK_RUNS = {
    "all-reduce": (2, "all-reduce --bytes 4 494208 --rounds 4"),  # DeepConvNet's gradients
    "steps, batch 100": (2, "steps --batch 100 --steps 3 --rounds 4"),
    "steps, one layer": (2, "steps --network one_layer --batch 100 --steps 100 --rounds 4"),
    "training, 1 rank": (1, _SHORT),
    "training, 2 ranks": (2, _SHORT),
}
"""Name of a run: the number of ranks, and the words of this command."""


def run_ranks(ranks: int, *words: str | float | Path, **options: Any) -> dict[str, Any]:
    """Run a job of this command with several ranks on this machine; return its result.

    Args:
        ranks: how many; they may be more than the cores.
        words: of the command line, such as ``"train", "--images", 2000``.
        options: ``timeout_s`` and ``show``; they, and what is raised, are those of
            :func:`fastdl_lib.scaling.mpi.run_program`.
    """
    return run_program(ranks, ["-m", "fastdl_lib.course.ranks"], *words, **options)


def rank_run(name: str, show: bool = False) -> dict[str, Measurement]:
    """Run one of :data:`RANK_RUNS`; where MPI is missing, read what was recorded of it.

    A ``FASTDL_TIME_SCALE`` below 1 makes the steps that are clocked together fewer, too.

    Args:
        show: print what rank 0 prints.

    Returns:
        For an all-reduce its seconds, by the number of bytes (as text); for steps the seconds of
        one, by the way to train; for a training its ``"seconds"``, ``"loss"`` (nats, of the epoch)
        and ``"accuracy"`` (%, of the test images).

    Raises: KeyError: there is no such run; RuntimeError, TimeoutError: as :func:`run_ranks`.
    """
    if name not in RANK_RUNS:
        raise KeyError(f"there is no run {name!r}; there are {sorted(RANK_RUNS)}.")
    if not mpi_status().available:
        recorded = read_recording(data_folder() / "recordings" / RECORDING).select(run=name)
        return {m.conditions["what"]: m for m in recorded}
    ranks, words = RANK_RUNS[name]
    scale = min(1.0, time_scale())
    words = re.sub(r"(?<=--steps )\d+", lambda n: f"{max(1, round(scale * int(n[0])))}", words)
    result = run_ranks(ranks, *words.split(), "--device", "cpu", show=show)
    card = MachineCard.from_dict(result["machine"])
    where = {"run": name, "ranks": ranks, "threads": result["threads"]}
    return {
        what: Measurement(
            f"{name}, {what}",
            unit,
            tuple(samples),
            Provenance.MEASURED,
            machine=card,
            conditions={**where, "what": what, "freed_memory": "kept"},
            disturbed=_disturbed(result, ranks),
        )
        for what, (unit, samples) in _samples(result).items()
    }


def _disturbed(result: Mapping[str, Any], ranks: int) -> str:
    """What a run of steps tells of other programs, in words: ranks that wait for nobody, and have a
    core each, use it."""
    shares = result.get("core_share", {}).get("all ranks, no communication")
    if not shares or ranks > usable_cores() or np.median(shares) >= 1 - WAITED_LIMIT:
        return ""
    return f"a rank got {np.median(shares):.0%} of a core"


def measure() -> Recording:
    """Run all of :data:`RANK_RUNS`. Raises RuntimeError, TimeoutError as :func:`run_ranks`."""
    if not mpi_status().available:
        raise RuntimeError(mpi_status().reason)
    found = [m for name in RANK_RUNS for m in rank_run(name, show=True).values()]
    command = "python -m fastdl_lib.course.record ranks"
    return Recording(found[0].machine, command, tuple(found))


def _samples(result: Mapping[str, Any]) -> dict[str, tuple[str, list[float]]]:
    """Name to unit and samples."""
    if result["job"] == "all-reduce":
        return {str(row["bytes"]): ("s", row["all_reduce_s"]) for row in result["sizes"]}
    if result["job"] == "steps":
        return {kind: ("s", samples) for kind, samples in result["step_s"].items()}
    return {
        "seconds": ("s", [result["seconds"]]),
        "loss": ("nats", [result["epochs"][-1]["loss"]]),
        "accuracy": ("%", [100 * result["test_accuracy"]]),
    }


# --- the jobs -----------------------------------------------------------------------------------


def _train(options: argparse.Namespace, ranks: MpiWorkers) -> dict[str, Any]:
    """Train DeepConvNet on MNIST, every rank with its part of each batch."""
    (images, labels), test = (
        _on_device(options, *(array[:count] for array in mnist(part)))
        for part, count in (("train", options.images), ("test", options.test))
    )
    network = without_dropout(deep_convnet(options.seed), options)
    if options.device == "gpu":
        network.to_gpu()
    history = fit_as_told(network, images, labels, options, workers=ranks)
    waited_s = ranks.of_all(ranks.waited_s)
    weights = digest(network.parameters.values())
    if len(names := set(ranks.of_all(int(weights[:12], 16)))) > 1:
        raise RuntimeError(f"the ranks have come to different weights: {names}")
    result = ranks.evaluate(network, *test)
    if ranks.rank == 0:
        print(f"Test: {result}")
        if options.out is not None:
            network.save_weights(options.out)
    return {
        "images": len(images),
        "batch": options.batch,
        "epochs": [dataclasses.asdict(epoch) for epoch in history.epochs],
        "seconds": history.seconds,
        "test_images": result.images,
        "test_accuracy": result.accuracy,
        "weights": weights,
        "waited_s": waited_s,
    }


def _on_device(options: argparse.Namespace, *arrays: Array) -> tuple[Array, ...]:
    return tuple(map(to_gpu, arrays)) if options.device == "gpu" else arrays


def _clock(ranks: MpiWorkers, run: Callable[[], Any], idle: bool = False) -> tuple[float, float]:
    """Seconds of the slowest rank, and the least share of a core that one got meanwhile.

    An idle rank waits for the others without using its core. A share well below 1 tells that
    other programs ran.
    """
    ranks.barrier(pause_s=1e-3)
    start, used_s = time.perf_counter(), time.process_time()
    if not idle:
        run()
        synchronize()
    took_s = time.perf_counter() - start
    share = 1.0 if idle else (time.process_time() - used_s) / took_s
    ranks.barrier(pause_s=1e-3)
    return max(ranks.of_all(0.0 if idle else took_s)), min(ranks.of_all(share))


def _all_reduce(options: argparse.Namespace, ranks: MpiWorkers) -> dict[str, Any]:
    """Time all-reduces, and on rank 0 alone copies of as many bytes, in turn."""

    def repeat(calls: int, work: Callable[..., Any], *arrays: Array) -> None:
        for _ in range(calls):
            work(*arrays)

    rows = []
    for size_bytes in options.bytes:
        values = np.zeros(size_bytes // 4, np.float32)
        calls = max(1, min(1000, 10_000_000 // size_bytes))  # so that the clock can tell
        add_up = functools.partial(repeat, calls, ranks.all_reduce, values)
        copy = functools.partial(repeat, calls, np.copyto, np.zeros_like(values), values)
        reduced_s, copied_s = [], []
        for _ in range(options.rounds + 2):
            reduced_s.append(_clock(ranks, add_up)[0] / calls)
            copied_s.append(_clock(ranks, copy, idle=ranks.rank > 0)[0] / calls)
        # The first two rounds fetched the memory from the system.
        times = {"all_reduce_s": reduced_s[2:], "copy_s": copied_s[2:]}
        rows.append({"bytes": values.nbytes, **times})
        if ranks.rank == 0:
            rates = (values.nbytes / 1e9 / float(np.median(one)) for one in times.values())
            fast, slow = map(format_number, rates)
            print(
                f"{values.nbytes:13,} bytes: all-reduce {fast} GB/s, copy {slow} GB/s "
                f"({Provenance.MEASURED})"
            )
    return {"sizes": rows}


def _one_layer() -> Network:
    """The smallest network for MNIST: 7,850 parameters, too little work to share."""
    fc = Linear(28 * 28, 10, rng=np.random.default_rng(0))
    return Network("one layer", [("flatten", Flatten()), ("fc", fc)], (1, 28, 28))


def _steps(options: argparse.Namespace, ranks: MpiWorkers) -> dict[str, Any]:
    """Time training steps of one rank alone and of all together, in turn."""
    batch = options.batch
    if options.network == "alexnet":
        network, x, labels = alexnet(), photos(batch), np.arange(batch) % 1000
    else:
        network = _one_layer() if options.network == "one_layer" else deep_convnet()
        x, labels = (array[:batch] for array in mnist("train"))
    x, labels = _on_device(options, x, labels)
    if options.device == "gpu":
        network.to_gpu()
    optimizer, here = SGD(1e-4, 0.9), ranks.share(batch)
    whole, part = (x, labels), (x[here], labels[here])
    kinds: dict[str, Callable[[], Any]] = {
        "one rank": lambda: network.training_pass(*whole),
        "all ranks": lambda: ranks.gradients(network, *part, batch),
        "all ranks, no overlap": lambda: ranks.gradients(network, *part, batch),
        "all ranks, no communication": lambda: network.training_pass(*part),
        "all ranks, a whole batch each": lambda: ranks.gradients(
            network, *whole, batch * ranks.size
        ),
    }

    def steps(kind: str) -> None:
        ranks.overlap = kind != "all ranks, no overlap"
        for _ in range(options.steps):
            kinds[kind]()
            optimizer.step(network)
            ranks.beat()

    ranks.begin(network, optimizer, None, [])
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    shares: dict[str, list[float]] = {kind: [] for kind in kinds}
    order = np.random.default_rng(0)
    for number in range(options.rounds + 1):
        for kind in order.permutation(list(kinds)).tolist():
            idle = kind == "one rank" and ranks.rank > 0
            took_s, share = _clock(ranks, functools.partial(steps, kind), idle)
            if number:  # the first round warms up
                seconds[kind].append(took_s / options.steps)
                shares[kind].append(share)
    if ranks.rank == 0:
        for kind, samples in seconds.items():
            step_ms = format_number(1e3 * float(np.median(samples)))
            print(f"{kind:30} {step_ms:>9} ms ({Provenance.MEASURED})")
    return {
        "network": network.name,
        "batch": batch,
        "gradient_bytes": sum(weight.nbytes for weight in network.parameters.values()),
        "step_s": seconds,
        "core_share": shares,
    }


JOBS = {"train": _train, "all-reduce": _all_reduce, "steps": _steps}


# --- the command --------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says, as one rank of a job; return the exit status."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError):
        print(mpi_status().reason, file=sys.stderr)
        return 1
    first = MPI.COMM_WORLD.rank == 0
    with contextlib.ExitStack() as quiet:
        if not first:
            null = quiet.enter_context(open(os.devnull, "w", encoding="utf-8"))
            quiet.enter_context(contextlib.redirect_stdout(null))
            quiet.enter_context(contextlib.redirect_stderr(null))
        try:
            here = MPI.COMM_WORLD.Split_type(MPI.COMM_TYPE_SHARED).size
            free = psutil.virtual_memory().available // here
            free = MPI.COMM_WORLD.allreduce(free, MPI.MIN)  # all must refuse, or none
            options = _parsed(arguments, MPI.COMM_WORLD.size, free)
        except SystemExit:  # on all ranks alike: rank 0 has said what is wrong before any leaves
            MPI.COMM_WORLD.Barrier()
            raise
    if options.device == "auto":
        options.device = "gpu" if gpu_available() else "cpu"
    ranks = MpiWorkers(cuda_aware=options.cuda_aware, patience_s=options.patience)
    with ranks, blas_threads(options.threads), keep_freed_memory():
        if options.device == "gpu":
            use_gpu(ranks.local_rank)
        card = machine_card()
        if first:
            written = (getattr(options, name, None) for name in ("result", "out", "checkpoint"))
            check_destination(*written)
            counted = "1 rank" if ranks.size == 1 else f"{ranks.size} ranks"
            print(f"{counted}, each on {card.summary}", flush=True)
        if options.fault is not None and options.fault[1] == ranks.rank:
            _fault(ranks, options.fault[0], options.fault[2])
        outcome = JOBS[options.job](options, ranks)
        if first and options.result is not None:
            outcome |= {
                "job": options.job,
                "ranks": ranks.size,
                "device": options.device,
                "threads": blas_threads_now(),
                "machine": card.to_dict(),
            }
            with whole_file(options.result) as part:
                part.write_text(json.dumps(outcome, allow_nan=False), encoding="utf-8")
    return 0


def _fault(ranks: MpiWorkers, how: str, step: int) -> None:
    """Let this rank go wrong at a step, so that one can see what happens then."""
    beat = ranks.beat

    def faulty(layer: str = "") -> None:
        if ranks.step == step:
            if how == "raise":
                raise RuntimeError("a fault that was asked for")
            if how == "exit":
                sys.exit(0)
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            while how == "hang":
                time.sleep(1)
        beat(layer)

    ranks.beat = faulty


def _a_fault(text: str) -> tuple[str, int, int]:
    found = re.fullmatch(r"(raise|exit|kill|hang):(\d+):(\d+)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"such as kill:1:20, got {text!r}")
    return found[1], int(found[2]), int(found[3])


def number_within(kind: type, **limits: Any) -> Callable[[str], Any]:
    """A type for argparse: a number within the limits that ``check_number`` takes."""

    def number(text: str) -> Any:
        try:
            value = kind(text)
            check_number("it", value, **limits)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return value

    return number


COUNT = number_within(int, low=1, high=10**9)
ABOVE_0 = number_within(float, low=0, low_included=False)
SHARE = number_within(float, low=0, high=1)
SEED = number_within(int, low=0, high=2**32)


def weights_file(text: str) -> Path:
    """A type for argparse: the name of an ``.npz`` file."""
    if Path(text).suffix != ".npz":
        raise argparse.ArgumentTypeError(f"the name must end in .npz, got {text!r}")
    return Path(text)


# Options of every command that trains, and their defaults.
_TRAINING = (
    ("--epochs", 1, COUNT, "passes over the training images"),
    ("--batch", 100, COUNT, "images a step, of all ranks together"),
    ("--optimizer", "adam", ["adam", "sgd"], "how gradients become steps"),
    ("--learning-rate", 3e-3, ABOVE_0, "the highest one of the schedule"),
    ("--momentum", 0.9, SHARE, "of sgd"),
    ("--weight-decay", 0.0, number_within(float, low=0), "of sgd"),
    ("--warmup", 0.1, SHARE, "share of the run in which the rate rises"),
    ("--shift", 0, number_within(int, low=0, high=28), "move the images by up to so many pixels"),
    ("--dropout", "none", [*DROPOUT], "at work in training; the book has both"),
    ("--seed", 0, SEED, "decides first weights and all chance"),
)


def training_options(parser: argparse.ArgumentParser, **recipe: Any) -> None:
    """Add what :func:`fit_as_told` needs, and ``--out``; ``recipe``: defaults that differ."""
    for flag, default, kind, what in _TRAINING:
        limits = {"choices": kind} if isinstance(kind, list) else {"type": kind}
        what += " (default: %(default)s)"
        parser.add_argument(flag, default=default, help=what, **limits)
    what = "store the run here after every epoch, and go on from it"
    parser.add_argument("--checkpoint", type=weights_file, help=what)
    what = "write the weights here (course.train: and beside them how they were made)"
    parser.add_argument("--out", type=weights_file, help=what)
    parser.set_defaults(**recipe)


def without_dropout(network: Network, options: argparse.Namespace) -> Network:
    """The network with the Dropout layers alone that ``--dropout`` names."""
    return network.variant(network.name, **dict.fromkeys(DROPOUT[options.dropout]))


def fit_as_told(
    network: Network, images: Array, labels: Array, options: argparse.Namespace, **more: Any
) -> History:
    """Train as the options say; ``more`` is what :func:`fastdl_lib.nn.training.fit` takes."""
    rate, sgd = options.learning_rate, options.optimizer == "sgd"
    given = {name: getattr(options, name) for name in ("epochs", "batch", "seed", "shift")}
    return fit(
        network, images, labels, **given, **more, checkpoint=options.checkpoint,
        optimizer=SGD(rate, options.momentum, options.weight_decay) if sgd else Adam(rate),
        schedule=warmup_cosine(options.warmup),
    )  # fmt: skip


def _parsed(arguments: Sequence[str] | None, ranks: int, free_bytes: float) -> argparse.Namespace:
    """The command line of a job of so many ranks, each with so much memory; what does not go
    together is refused."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.fault is not None and options.fault[1] >= ranks:
        parser.error(f"--fault names rank {options.fault[1]}; there are ranks 0 to {ranks - 1}.")
    if options.job == "train" and options.batch > options.images:
        parser.error(
            f"--batch {options.batch} takes more than --images {options.images}; give less."
        )
    if options.job == "steps":
        most = options.batch if options.network == "alexnet" else MNIST_IMAGES
        if not ranks <= options.batch <= most:
            parser.error(
                f"--batch {options.batch}: give each of {ranks} ranks an image or more; "
                f"MNIST has {MNIST_IMAGES:,} training images."
            )
    # At least: the arrays that are added up and their copies, or the images alone.
    asked, needs = "", 0
    if options.job == "all-reduce":
        asked, needs = f"--bytes {max(options.bytes)}", 2 * max(options.bytes)
    elif options.job == "steps" and options.network == "alexnet":
        asked, needs = f"--batch {options.batch}", options.batch * PHOTO_BYTES
    if needs > free_bytes:
        parser.error(
            f"{asked} takes {needs / 1e9:,.1f} GB of memory in each rank; this machine has "
            f"{free_bytes / 1e9:,.1f} GB free for each: give less."
        )
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mpiexec -n 2 python -m mpi4py -m fastdl_lib.course.ranks",
        description="Train in several processes that share every batch, or measure how fast they "
        "do. With --hostfile, or under srun --kill-on-bad-exit=1, on several machines.",
    )
    jobs = parser.add_subparsers(dest="job", required=True)

    def job(name: str, text: str) -> Callable[..., Any]:
        job_parser = jobs.add_parser(name, help=text, description=text)

        def add(flag: str, default: Any, text: str, number=COUNT, **kind) -> None:
            text += " (default: %(default)s)"
            number = None if "choices" in kind else number
            job_parser.add_argument(flag, default=default, type=number, help=text, **kind)

        add("--threads", 1, "BLAS threads a rank", number_within(int, low=1, high=1025))
        add("--device", "auto", "where", choices=["auto", "cpu", "gpu"])
        seconds = "seconds without a sign of life after which a rank counts as hanging"
        add("--patience", PATIENCE_S, seconds, ABOVE_0)
        plain = job_parser.add_argument
        plain("--cuda-aware", action="store_true", help="the MPI library takes GPU arrays")
        wrong = "HOW:RANK:STEP, such as kill:1:20: raise, exit, kill or hang there, to see the end"
        plain("--fault", type=_a_fault, metavar="FAULT", help=wrong)
        plain("--result", type=Path, help="write the result here, as JSON")
        if name == "train":
            training_options(job_parser)
        return add

    add = job("train", "train DeepConvNet on MNIST")
    at_most = number_within(int, low=1, high=MNIST_IMAGES + 1)
    add("--images", MNIST_IMAGES, "train on the first so many", at_most)
    add("--test", 10_000, "test on the first so many", number_within(int, low=1, high=10_001))

    add = job("all-reduce", "measure how fast arrays are added up over all ranks")
    text = "of the arrays, rounded down to whole float32 values"
    add("--bytes", [ALEXNET_BYTES], text, number_within(int, low=4), nargs="+")
    add("--rounds", 10, "samples")

    add = job("steps", "measure training steps of one rank and of all, in turn")
    networks = ["deep_convnet", "alexnet", "one_layer"]
    add("--network", networks[0], "which", choices=networks)
    add("--batch", 100, "images a step, all ranks together")
    add("--steps", 10, "steps a sample")
    add("--rounds", 5, "samples")
    return parser


if __name__ == "__main__":
    sys.exit(main())
