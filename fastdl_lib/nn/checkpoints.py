"""A training run in a file: stored whole after every epoch, taken up exactly where it stopped."""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from fastdl_lib.core.arrays import array_module, beside, to_cpu, wide
from fastdl_lib.core.checks import check_number, check_whole_number
from fastdl_lib.core.files import check_destination, whole_file
from fastdl_lib.nn.archives import Wanted, check_arrays, holding, is_checkpoint, read_arrays
from fastdl_lib.nn.network import Network
from fastdl_lib.nn.optimizers import Optimizer

Array = Any  # numpy.ndarray or cupy.ndarray

CHECKPOINT_SCHEMA = "fastdl-checkpoint/1"


@dataclasses.dataclass(frozen=True)
class Epoch:
    """What one pass over the training images gave."""

    epoch: int
    """From 1 up."""
    loss: float
    """Mean over the images while they were trained on, nats; Dropout at work."""
    accuracy: float
    """The share that was right while they were trained on, 0 to 1; Dropout at work."""
    validation_accuracy: float | None
    """Of the network at the epoch's end, 0 to 1; None where there are no validation images."""
    learning_rate: float
    """At the epoch's last step."""
    seconds: float = dataclasses.field(compare=False)
    """Of training, validation and checkpoint not counted. Two equal epochs may take others."""

    def __post_init__(self) -> None:
        check_whole_number("epoch", self.epoch, 1)
        for field in dataclasses.fields(self)[1:]:
            value, most = getattr(self, field.name), 1 if "accuracy" in field.name else math.inf
            if value is None and field.name == "validation_accuracy":
                continue
            check_number(field.name, value, low=0)
            if float(value) > most:
                raise ValueError(f"{field.name} must be at most {most}, got {value}.")


class Checkpoint:
    """A run in one ``.npz`` file: weights, the optimiser's memory, the epochs so far, settings."""

    def __init__(
        self, path: str | os.PathLike, settings: dict, network: Network, optimizer: Optimizer
    ) -> None:
        self.path = Path(path)
        if self.path.suffix != ".npz":
            raise ValueError(f"a checkpoint is stored as .npz, got the name {self.path.name!r}.")
        self.settings, self.network, self.optimizer = settings, network, optimizer
        # The optimisers keep two arrays for each weight at most.
        check_destination(self.path, room_bytes=3 * sum(a.nbytes for a in self._weights().values()))
        self.start = digest(self._weights().values())

    def _weights(self) -> dict[str, Array]:
        return self.network.parameters | self.network.buffers

    def begin(self) -> list[dict]:
        """Take up the stored run and return its epochs; begin a new one where there is none."""
        if self.path.exists():
            record, arrays = self._read()
            # A run without a finished epoch has nothing to lose.
            if record["epochs"]:
                self._check_same_run(record, arrays)
                self.start = record["start"]
                return self._restore(record, arrays)
        # Written before the first epoch, so that a full disk shows now and not after it.
        self.write([])
        return []

    def write(self, epochs: list[dict]) -> None:
        """Store the run as it is now: the whole file, or the old one stays."""
        record = {
            "schema": CHECKPOINT_SCHEMA,
            "settings": self.settings,
            "start": self.start,
            "steps": self.optimizer.steps,
            "numbers": self.optimizer.numbers,
            "epochs": epochs,
        }
        arrays = {f"weight.{name}": a for name, a in self._weights().items()}
        arrays |= {f"state.{name}": a for name, a in self.optimizer.state.items()}
        with whole_file(self.path) as part:
            np.savez(
                part,
                record=np.array(json.dumps(record, allow_nan=False)),
                **{name: to_cpu(array) for name, array in arrays.items()},
            )

    def restore(self) -> list[dict]:
        """Set weights and optimiser back to what is stored, and return the epochs."""
        record, arrays = self._read()
        self._check_whole(record, arrays)
        return self._restore(record, arrays)

    def _read(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        other = "give this run's checkpoint another name"
        try:
            arrays = read_arrays(self.path)
        except ValueError as error:
            raise ValueError(f"{error} To begin a new run, {other}.") from None
        what = holding(arrays)
        if not is_checkpoint(arrays):
            raise ValueError(f"{self.path.name} is no checkpoint but holds {what}: {other}.")
        try:
            record = json.loads(str(arrays.pop("record")))
            schema = record["schema"]
            kinds = {"settings": dict, "start": str, "steps": int, "epochs": list}
            whole = all(isinstance(record[key], kind) for key, kind in kinds.items())
        except (ValueError, TypeError, LookupError, RecursionError):
            schema, whole = None, False
        if schema != CHECKPOINT_SCHEMA or not whole:
            expected = f"expected a whole one of {CHECKPOINT_SCHEMA!r}"
            raise ValueError(
                f"{self.path.name} holds {what} with a record of the schema {schema!r}, "
                f"{expected}: {other}."
            )
        return record, arrays

    def _check_same_run(self, record: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        another = f"the checkpoint {self.path.name} belongs to another run: "
        remedy = "Give this run a checkpoint of another name."
        stored = record["settings"]
        # Older files know a convolution's algorithm by the name of a private attribute.
        layers = stored.get("layers")
        for layer in layers.values() if isinstance(layers, dict) else ():
            if isinstance(layer, dict) and "_algorithm" in layer:
                layer["algorithm"] = layer.pop("_algorithm")
        for name, value in self.settings.items():
            was = stored.get(name)
            if was != value and isinstance(was, dict) and isinstance(value, dict):
                key = next(k for k in [*was, *value] if was.get(k) != value.get(k))
                name, was, value = f"{name} {key}", was.get(key), value.get(key)
            if was != value:
                raise ValueError(f"{another}its {name} is {was}, this call's {value}. {remedy}")
        self._check_whole(record, arrays)
        # A network that was interrupted holds the stored weights, not those it began with.
        held = digest(arrays[f"weight.{name}"] for name in self._weights())
        if self.start not in (record["start"], held):
            began = "it began with other weights (another seed of the network?)"
            raise ValueError(f"{another}{began}. {remedy}")

    def _check_whole(self, record: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Refuse what is not a whole run of this network, before anything is changed."""
        network, optimizer = self.network, self.optimizer
        wanted = {f"weight.{name}": rule for name, rule in network.wanted_arrays.items()}
        for kind in optimizer.memory if record["steps"] else ():
            for name, weight in network.parameters.items():
                rule = Wanted(wide(weight.dtype), weight.shape, kind in optimizer.not_negative)
                wanted[f"state.{kind}.{name}"] = rule
        try:
            check_arrays(arrays, wanted)
            self._check_numbers(record)
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ValueError(
                f"{self.path.name} holds no whole checkpoint of {network.name}: {error}"
            ) from None

    def _check_numbers(self, record: dict[str, Any]) -> None:
        """Refuse epochs and numbers that this run cannot have come to."""
        epochs, settings = [Epoch(**fields) for fields in record["epochs"]], self.settings
        count, places = len(epochs), [epoch.epoch for epoch in epochs]
        if places != [*range(1, min(count, settings["epochs"]) + 1)]:
            raise ValueError(f"its epochs are {places}, of {settings['epochs']}.")
        without = settings["validation data"] is None
        if any((epoch.validation_accuracy is None) != without for epoch in epochs):
            raise ValueError("its epochs have a validation accuracy, or none, unlike the run.")
        numbers, own = record.get("numbers", self.optimizer.numbers), self.optimizer.numbers
        for name in numbers.keys() | own.keys():
            if type(numbers.get(name)) is not type(own.get(name)):
                raise ValueError(f"its numbers are {numbers}, the optimiser's {own}.")
            check_number(name, float(numbers[name]), low=0)
        # Not a limit from above: the optimiser may have worked before.
        steps = count * math.ceil(settings["images"] / settings["batch"])
        float(check_whole_number("steps", record["steps"], steps - numbers.get("skipped", 0)))

    def _restore(self, record: dict[str, Any], arrays: dict[str, np.ndarray]) -> list[dict]:
        # First, since an optimiser may refuse them; older files have none.
        self.optimizer.numbers = record.get("numbers", self.optimizer.numbers)
        weights = self._weights()
        state = {}
        for key, array in arrays.items():
            kind, _, name = key.partition(".")
            if kind == "weight":
                weights[name][...] = beside(array, weights[name])
            else:
                # In the layout of its weight, which the file does not keep.
                weight = weights[name.partition(".")[2]]
                state[name] = array_module(weight).zeros_like(weight, dtype=array.dtype)
                state[name][...] = beside(array, weight)
        self.optimizer.state, self.optimizer.steps = state, record["steps"]
        return record["epochs"]


def digest(arrays: Iterable[Array]) -> str:
    """A short name for what arrays hold, as good as the arrays to tell two runs apart."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(to_cpu(array)))
    return digest.hexdigest()[:16]
