"""Training a network with ``fit``, and its accuracy over every image.

What is random in an epoch (the order of the images, their shifts, Dropout) depends on the seed and
the epoch's number alone. A run that was interrupted therefore goes on from its last finished epoch
to the same weights, bit for bit, as one that was not (on the same machine with as many BLAS
threads: another number adds up in another order).
"""

import dataclasses
import math
import os
import sys
import time
from collections.abc import Iterator
from numbers import Real
from typing import Any

import numpy as np
from tqdm import tqdm

from fastdl_lib.core.arrays import (
    array_module,
    beside,
    keep_freed_memory,
    synchronize,
    to_cpu,
    wide,
)
from fastdl_lib.core.checks import check_whole_number
from fastdl_lib.measuring.evidence import Column, Provenance, Table
from fastdl_lib.nn.checkpoints import Checkpoint, Epoch, digest
from fastdl_lib.nn.layers import seed_of
from fastdl_lib.nn.loss import loss_and_gradient, loss_and_right
from fastdl_lib.nn.network import Network
from fastdl_lib.nn.optimizers import Optimizer, Schedule

Array = Any  # numpy.ndarray or cupy.ndarray


# --- the images ---------------------------------------------------------------------------------


def hold_out(
    images: Array, labels: Array, count: int, seed: int = 0
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Split a training set in two: the last ``count`` images of a seeded shuffle are held out.

    Recipes are compared on what is held out, so that the test set is looked at once, at the end.
    images, labels: (N, ...) and (N,), NumPy arrays; count: 1 to N - 1.

    Returns:
        ``(images, labels)`` to train with, and ``(images, labels)`` to validate with.

    >>> rest, held = hold_out(np.zeros((10, 1, 28, 28)), np.arange(10), 2)
    >>> rest[0].shape, held[1].shape
    ((8, 1, 28, 28), (2,))
    """
    count = check_whole_number("count", count, 1)
    if count >= len(images):
        raise ValueError(f"count must be below the {len(images)} images, got {count}.")
    order = np.random.default_rng(seed).permutation(len(images))
    rest, held = order[:-count], order[-count:]
    return (images[rest], labels[rest]), (images[held], labels[held])


def _shifted(images: Array, offsets: np.ndarray) -> Array:
    """Move each image by its own (down, right), whole pixels; zeros come in where it leaves."""
    out, (height, width) = array_module(images).zeros_like(images), images.shape[2:]
    for image, moved, (down, right) in zip(images, out, offsets.tolist(), strict=True):
        top, left = max(down, 0), max(right, 0)
        kept = image[:, top - down : height - top, left - right : width - left]
        moved[:, top : height + min(down, 0), left : width + min(right, 0)] = kept
    return out


# --- evaluation ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How a network did on a set of images.

    >>> print(Evaluation(images=400, correct=397, loss=0.031))
    99.25 % of 400 images right, loss 0.0310 nats an image (measured here)
    """

    images: int
    correct: int
    loss: float
    """Mean over the images, nats."""

    @property
    def accuracy(self) -> float:
        """The share that is right, 0 to 1."""
        return self.correct / self.images

    def __str__(self) -> str:
        return (
            f"{100 * self.accuracy:.2f} % of {self.images:,} images right, loss {self.loss:.4f} "
            f"nats an image ({Provenance.MEASURED})"
        )


def predict_classes(network: Network, images: Array, batch: int = 500) -> np.ndarray:
    """Return the class of the largest logit for every image, the first one where several tie.

    Args and errors are those of :func:`evaluate`; returns (N,), int64, a NumPy array.

    >>> from fastdl_lib.nn.zoo import deep_convnet
    >>> predict_classes(deep_convnet(), np.zeros((3, 1, 28, 28), np.float32)).shape
    (3,)
    """
    batch = check_whole_number("batch", batch, 1)
    network.check_input(images)
    found = []
    for start in range(0, len(images), batch):
        logits = network.forward(images[start : start + batch])
        _check_logits(network, float(logits.max(axis=1).sum(dtype=np.float64)), logits, start)
        found.append(to_cpu(logits.argmax(axis=1)))
    return np.concatenate(found)


def evaluate(network: Network, images: Array, labels: Array, batch: int = 500) -> Evaluation:
    """Run ``network`` on all images, those of a last smaller batch included, and count.

    Args:
        images: (N, C, H, W), the network's dtype, on the CPU or the GPU.
        labels: (N,), whole numbers from 0 to classes - 1, beside the images.
        batch: images a forward pass; it decides the memory, and of the result the last digits.

    Raises:
        TypeError, ValueError: images or labels that do not fit, or a batch below 1.
        FloatingPointError: logits or a loss that are not finite.

    >>> from fastdl_lib.nn.zoo import deep_convnet
    >>> evaluate(deep_convnet(), np.zeros((7, 1, 28, 28), np.float32), np.arange(7), batch=2).images
    7
    """
    batch = check_whole_number("batch", batch, 1)
    network.check_input(images, labels)
    correct, loss_sum = 0, 0.0
    for start in range(0, len(images), batch):
        part = labels[start : start + batch]
        logits = network.forward(images[start : start + batch])
        loss, right = loss_and_right(loss_and_gradient(logits, part)[0], logits, part)
        _check_logits(network, loss, logits, start)
        loss_sum += len(part) * loss
        correct += right
    return Evaluation(len(images), correct, loss_sum / len(images))


def _check_logits(network: Network, made_of_them: float, logits: Array, start: int) -> None:
    """Refuse to take a class out of logits, of images from ``start`` on, where there is none."""
    if math.isfinite(made_of_them):
        return
    bad = np.flatnonzero(~np.isfinite(to_cpu(logits)).all(axis=1))
    first = start + int(bad[0]) if len(bad) else start
    raise FloatingPointError(
        f"{network.name}: the logits, or the loss, of image {first} and maybe of others are not "
        "finite, and an answer would be chance: see that the network's weights and the images are "
        "finite, and that their format holds what the layers compute."
    )


# --- training -----------------------------------------------------------------------------------


class Workers:
    """What :func:`fit` asks of the processes that share its batches; here, only this one."""

    rank = 0
    """This process's number. Number 0 shows the progress and keeps the checkpoint."""
    size = 1
    """How many share the batches."""
    way = ""
    """What makes the gradients others than those of plain training, for a checkpoint."""

    def begin(
        self, network: Network, optimizer: Optimizer, settings: dict | None, epochs: list[dict]
    ) -> list[dict]:
        """Give all of them number 0's weights, memory and epochs; return these. ``settings`` must
        be the same everywhere."""
        return epochs

    def share(self, images: int) -> slice:
        """Which of a batch's images come here."""
        return slice(0, images)

    def gradients(
        self, network: Network, x: Array, labels: Array, images: int, loss_scale: float = 1.0
    ) -> tuple[float, int]:
        """Fill ``network.gradients`` from ``x`` and ``labels``, this one's share of a batch of so
        many ``images``, times ``loss_scale``. Return the whole batch's loss, nats, and how many of
        it were right."""
        return network.training_pass(x, labels, scale=loss_scale)

    def evaluate(self, network: Network, images: Array, labels: Array) -> Evaluation:
        """Run the network on all images, shared out."""
        return evaluate(network, images, labels)


@dataclasses.dataclass(frozen=True, repr=False)
class History:
    """The epochs of a run, first to last; shows itself as a table."""

    network: str
    epochs: tuple[Epoch, ...]

    @property
    def seconds(self) -> float:
        """Of training, all epochs together."""
        return sum(epoch.seconds for epoch in self.epochs)

    def table(self) -> Table:
        """One row an epoch; the learning rate was chosen, the rest measured."""
        measured, validation = Provenance.MEASURED, "validation_accuracy"
        rows = [dataclasses.asdict(epoch) for epoch in self.epochs]
        columns = [
            Column("epoch"),
            Column("learning_rate", "learning rate"),
            Column("loss", "training loss", "nats", measured),
            Column("accuracy", "training accuracy", "%", measured),
            Column(validation, "validation accuracy", "%", measured),
            Column("seconds", "training", "s", measured),
        ]
        if any(row[validation] is None for row in rows):
            columns = [column for column in columns if column.key != validation]
        for row in rows:
            for column in columns:
                row[column.key] *= 100 if column.unit == "%" else 1
        caption = (
            f"{self.network}: {self.seconds:,.1f} s of training ({measured}); loss and training "
            "accuracy while it learned, Dropout at work"
        )
        return Table(tuple(columns), tuple(rows), caption)

    def __repr__(self) -> str:  # what print shows, and a notebook that cannot show HTML
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def fit(
    network: Network,
    images: Array,
    labels: Array,
    *,
    epochs: int,
    optimizer: Optimizer,
    batch: int = 100,
    schedule: Schedule | None = None,
    seed: int = 0,
    shift: int = 0,
    validation: tuple[Array, Array] | None = None,
    checkpoint: str | os.PathLike | None = None,
    progress: bool = True,
    workers: Workers | None = None,
) -> History:
    """Train ``network``, in place, and return how each epoch went.

    With ``checkpoint`` the run is stored after every epoch. The same call goes on from there, to
    the same weights as if never interrupted. An epoch that does not finish is lost whole: network
    and optimiser go back to the end of the one before.

    Args:
        images: (N, C, H, W), the network's dtype, on the CPU or the GPU as its weights.
        labels: (N,), whole numbers from 0 to classes - 1, beside the images.
        epochs: passes over all images.
        optimizer: such as ``Adam()``; the schedule multiplies its learning rate meanwhile.
        batch: images a step; an epoch's last step takes what is left.
        schedule: the learning rate's factor by the share of the run that is done, 0 to 1, such as
            ``warmup_cosine()``; a step asks for its middle.
        seed: decides, with the epoch's number, the order of the images, their shifts and Dropout.
        shift: move each image by up to so many pixels, anew each time.
        validation: ``(images, labels)`` to count after every epoch.
        checkpoint: the name of an ``.npz`` file; ``load_weights`` takes the weights out of it.
        progress: show a line with a bar for each epoch: time, loss, accuracy.
        workers: the processes that share every batch, all with the same call.

    Raises:
        TypeError, ValueError: what does not fit; a checkpoint that is damaged or another run's.
        FloatingPointError: the loss is no longer a finite number.

    >>> from fastdl_lib.nn.zoo import deep_convnet
    >>> from fastdl_lib.nn.optimizers import Adam
    >>> x, labels = np.zeros((4, 1, 28, 28), np.float32), np.arange(4)
    >>> history = fit(deep_convnet(), x, labels, epochs=2, optimizer=Adam(), progress=False)
    >>> [epoch.epoch for epoch in history.epochs]
    [1, 2]
    """
    run = _Run(
        network, images, labels, optimizer, epochs, batch, schedule, seed, shift, validation,
        workers or Workers(),
    )  # fmt: skip
    with keep_freed_memory():
        return History(network.name, tuple(run.go(checkpoint, progress)))


@dataclasses.dataclass(eq=False)
class _Run:
    """What :func:`fit` was given, checked, and its loops."""

    network: Network
    images: Array
    labels: Array
    optimizer: Optimizer
    epochs: int
    batch: int
    schedule: Schedule | None
    seed: int
    shift: int
    validation: tuple[Array, Array] | None
    workers: Workers

    def __post_init__(self) -> None:
        self.network.check_input(self.images, self.labels)
        if self.validation is not None:
            self.network.check_input(*self.validation)
        if not isinstance(self.optimizer, Optimizer):
            raise TypeError(f"optimizer must be one such as Adam(), got {self.optimizer!r}.")
        for name, least in (("epochs", 1), ("batch", 1), ("seed", 0), ("shift", 0)):
            setattr(self, name, check_whole_number(name, getattr(self, name), least))
        size = self.images.shape[2:]
        if self.shift >= min(size):
            raise ValueError(f"shift must be below the images' {size}, got {self.shift}.")
        _factors(self.schedule)

    def go(self, checkpoint: str | os.PathLike | None, progress: bool) -> list[Epoch]:
        """Train the epochs that are left; store each."""
        optimizer, workers, stored = self.optimizer, self.workers, []
        needed = checkpoint is not None or workers.size > 1
        settings, store = self._settings() if needed else None, None
        if checkpoint is not None and workers.rank == 0:
            store = Checkpoint(checkpoint, settings, self.network, optimizer)
            stored = store.begin()
        stored = workers.begin(self.network, optimizer, settings, stored)
        done = [Epoch(**fields) for fields in stored]
        base_rate = optimizer.learning_rate
        try:
            for number in range(len(done) + 1, self.epochs + 1):
                epoch = self._epoch(number, base_rate, progress and workers.rank == 0)
                if store is not None:
                    store.write([dataclasses.asdict(one) for one in (*done, epoch)])
                done.append(epoch)
        except BaseException as error:
            kept = [] if store is None else store.restore()
            if isinstance(error, KeyboardInterrupt) and workers.rank == 0:
                _say_what_is_kept(len(done) + 1, len(kept), store)
            raise
        finally:
            optimizer.learning_rate = base_rate
        return done

    def _settings(self) -> dict[str, Any]:
        """By which a checkpoint knows the run again, and ranks that they make the same call."""
        network, optimizer = self.network, self.optimizer.settings
        validation = None if self.validation is None else digest(self.validation)
        return {
            "network": network.name,
            "layers": {name: layer.settings for name, layer in network.layers.items()},
            "shapes": {name: list(array.shape) for name, array in network.parameters.items()},
            "dtype": str(self.images.dtype),
            "epochs": self.epochs,
            "batch": self.batch,
            **optimizer,
            "optimizer": optimizer["optimizer"] + self.workers.way,
            "schedule": _factors(self.schedule),
            "seed": self.seed,
            "shift": self.shift,
            "images": len(self.images),
            "training data": digest([self.images, self.labels]),
            "validation data": validation,
        }

    def _epoch(self, number: int, base_rate: float, progress: bool) -> Epoch:
        """An epoch, its validation and its line of progress."""
        # An epoch's source 0 are the images, from 1 up the layers.
        for index, layer in enumerate(self.network.layers.values(), start=1):
            layer.reseed(seed_of(self.seed, number, index))
        steps = math.ceil(len(self.images) / self.batch)
        places = [(number - 1 + (step + 0.5) / steps) / self.epochs for step in range(steps)]
        factors = [float(self.schedule(place)) if self.schedule else 1 for place in places]
        title = f"epoch {number:{len(str(self.epochs))}}/{self.epochs}"
        with _bar(title, steps, progress) as bar:
            epoch = self._steps(number, [base_rate * factor for factor in factors], bar)
            if self.validation is None:
                return epoch
            accuracy = self.workers.evaluate(self.network, *self.validation).accuracy
            text = _so_far(epoch.loss, epoch.accuracy)
            bar.set_postfix_str(f"{text}, validation {100 * accuracy:.2f} %", refresh=False)
        return dataclasses.replace(epoch, validation_accuracy=accuracy)

    def _batches(self, number: int) -> Iterator[tuple[Array, Array, int]]:
        """What comes here of an epoch's batches, and how many images the whole batch has. Every
        image comes once; the last batch is smaller where it must be."""
        rng = np.random.default_rng(seed_of(self.seed, number, 0))
        order = beside(rng.permutation(len(self.images)), self.images)
        for start in range(0, len(order), self.batch):
            whole = order[start : start + self.batch]
            here = self.workers.share(len(whole))
            x = self.images[whole[here]]
            if self.shift:
                offsets = rng.integers(-self.shift, self.shift + 1, size=(len(whole), 2))
                x = _shifted(x, offsets[here])
            yield x, self.labels[whole[here]], len(whole)

    def _steps(self, number: int, rates: list[float], bar: tqdm) -> Epoch:
        """Take a step with every batch; show on the bar how the epoch goes so far."""
        seen, correct, loss_sum = 0, 0, 0.0
        optimizer, network = self.optimizer, self.network
        synchronize()
        start = time.perf_counter()
        # A run that goes astray ends in an error that says so; NumPy's warnings come before it.
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            both = zip(self._batches(number), rates, strict=True)
            for step, ((x, labels, whole), rate) in enumerate(both, start=1):
                optimizer.learning_rate = rate
                scale = optimizer.loss_scale
                loss, right = self.workers.gradients(network, x, labels, whole, scale)
                where = f"epoch {number}, step {step} of {len(rates)}"
                _check_finite("the loss", loss, where, rate)
                optimizer.step(network)
                _check_weights(network.parameters | network.buffers, where, rate)
                seen += whole
                loss_sum += whole * loss
                correct += right
                bar.set_postfix_str(_so_far(loss_sum / seen, correct / seen), refresh=False)
                bar.update()
            _check_weights(optimizer.state, f"epoch {number}", rate)
        synchronize()
        seconds = time.perf_counter() - start
        return Epoch(number, loss_sum / seen, correct / seen, None, rate, seconds)


def _check_finite(what: str, value: float, where: str, rate: float) -> None:
    if not math.isfinite(value):
        raise FloatingPointError(
            f"{what} became {value} in {where}: try a lower learning rate (it was {rate:.3g} "
            "there), and see that the images are finite."
        )


def _check_weights(arrays: dict[str, Array], where: str, rate: float) -> None:
    """A loss need not show them: a sign is finite whatever it is of."""
    sums = {n: a.sum(dtype=wide(a.dtype)) for n, a in arrays.items() if a.dtype.kind == "f"}
    if sums:  # fetched together: a GPU is waited for once
        totals = array_module(*arrays.values()).stack([*sums.values()]).tolist()
        for name, total in zip(sums, totals, strict=True):
            _check_finite(f"the sum of {name}", total, where, rate)


def _so_far(loss: float, accuracy: float) -> str:
    return f"loss {loss:.4f}, accuracy {100 * accuracy:.2f} %"


def _factors(schedule: Schedule | None) -> list[float]:
    """The schedule at eleven places, by which a checkpoint knows it again."""
    factors = []
    for tenth in range(11):
        factor = schedule(tenth / 10) if callable(schedule) else 1.0 if schedule is None else None
        if not isinstance(factor, Real) or not 0 <= factor < math.inf:
            raise TypeError(
                "schedule must take the share of the run, 0 to 1, and return a factor from 0 up, "
                f"as warmup_cosine(), with its brackets, does; got {factor!r} from {schedule!r}."
            )
        factors.append(float(factor))
    return factors


def _bar(title: str, steps: int, progress: bool) -> tqdm:
    """A line of text that moves in a terminal and in a notebook; a log file gets its end only."""
    # Not tqdm.auto: its widget is empty where a notebook is not running. Not stderr: a notebook
    # shows that as something wrong.
    if sys.stdout.isatty():
        interval_s = 0.1
    elif type(sys.stdout).__module__.partition(".")[0] == "ipykernel":
        interval_s = 1.0
    else:
        interval_s = math.inf
    return tqdm(
        total=steps, desc=title, file=sys.stdout, disable=not progress, mininterval=interval_s,
        maxinterval=max(10.0, interval_s),
        bar_format="{desc} |{bar:10}| {elapsed}<{remaining}{postfix}",
    )  # fmt: skip


def _say_what_is_kept(epoch: int, kept: int, store: Checkpoint | None) -> None:
    if store is None:
        what = "nothing was stored; checkpoint='run.npz' would keep every finished epoch."
    else:
        what = f"{store.path.name} holds {kept} finished ones, the same call goes on from there."
    print(f"Interrupted in epoch {epoch}: {what}", flush=True)
