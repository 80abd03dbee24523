"""Layers in a row: a forward and backward pass over them, and how their weights are stored."""

import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastdl_lib.core.arrays import array_module, beside, to_cpu, to_gpu, wide
from fastdl_lib.core.checks import check_choice, check_whole_number
from fastdl_lib.core.files import whole_file
from fastdl_lib.measuring.costs import KINDS
from fastdl_lib.nn.archives import Wanted, check_arrays, holding, is_checkpoint, read_arrays
from fastdl_lib.nn.layers import Layer
from fastdl_lib.nn.loss import check_labels, loss_and_gradient, loss_and_right

Array = Any  # numpy.ndarray or cupy.ndarray


_numbers = itertools.count()


class Network:
    """Named layers in a row.

    Networks may share layers, as a variant does; in one network each layer has one place.

    Args:
        name: such as ``"AlexNet"``.
        layers: (name, layer) pairs, first to last.
        input_shape: the shape of one image, (C, H, W).

    Raises TypeError, ValueError: what is no layer, stands twice or does not fit the one before it.
    """

    def __init__(
        self, name: str, layers: Sequence[tuple[str, Layer]], input_shape: tuple[int, int, int]
    ) -> None:
        pairs = [_checked_pair(name, pair) for pair in layers]
        self.name, self.layers = name, dict(pairs)
        names = [layer_name for layer_name, _ in pairs]
        if not pairs:
            raise ValueError(f"{name} has no layers; give at least one (name, layer) pair.")
        if len(self.layers) < len(pairs):
            raise ValueError(f"{name}: two layers share a name in {names}.")
        if len({id(layer) for _, layer in pairs}) < len(pairs):
            raise ValueError(
                f"{name}: one layer stands under two names in {names}, but it keeps what came by "
                "in one place only: make a layer for each."
            )
        self.input_shape = shape = _checked_shape(f"{name}: input_shape", input_shape)
        if len(shape) != 3:
            raise ValueError(f"{name}: input_shape is (C, H, W), three numbers, got {shape}.")
        self.shapes: dict[str, tuple[int, ...]] = {}
        """The shape of one output of each layer, without the batch axis."""
        for layer_name, layer in pairs:
            place = f"{name}, layer {layer_name}"
            try:
                shape = layer.output_shape(shape)
            except ValueError as error:
                raise ValueError(f"{place}: {error}") from None
            self.shapes[layer_name] = shape = _checked_shape(f"{place}: output_shape", shape)
        # By which shared layers know whose pass they ran last.
        self._number = next(_numbers)

    def variant(self, name: str, **layers: Layer | None) -> "Network":
        """Return a network with some layers replaced, or left out where None is given.

        All other layers, weights included, are shared with this one, so a variant costs no memory.

        >>> from fastdl_lib.nn.zoo import deep_convnet
        >>> deep_convnet().variant("without dropout", drop1=None, drop2=None).shapes["fc2"]
        (10,)
        """
        unknown = layers.keys() - self.layers.keys()
        if unknown:
            raise ValueError(f"{self.name} has no layer {sorted(unknown)[0]!r}: {[*self.layers]}.")
        changed = {**self.layers, **layers}
        kept = [(n, layer) for n, layer in changed.items() if layer is not None]
        return Network(name, kept, self.input_shape)

    def input_shape_of(self, name: str) -> tuple[int, ...]:
        """The shape of one input of the layer ``name``, without the batch axis."""
        if name not in self.layers:
            raise KeyError(f"{self.name} has no layer {name!r}; it has {[*self.layers]}.")
        came_in = [self.input_shape, *self.shapes.values()]
        return came_in[[*self.layers].index(name)]

    @property
    def parameters(self) -> dict[str, Array]:
        """All weights by name, such as ``"conv1.weight"``."""
        return self._arrays("parameters")

    @property
    def gradients(self) -> dict[str, Array]:
        """Those of its last backward pass, under the names of ``parameters``; none of a layer that
        another network's pass has gone through since."""
        return self._arrays("gradients")

    @property
    def buffers(self) -> dict[str, Array]:
        """What layers remember but do not learn by gradients, such as ``"norm1.mean"``."""
        return self._arrays("buffers")

    @property
    def wanted_arrays(self) -> dict[str, Wanted]:
        """What a file of its weights must hold, buffers included, as the layers say."""
        return {
            f"{name}.{key}": Wanted(array.dtype, array.shape, key in layer.not_negative)
            for name, layer in self.layers.items()
            for key, array in (layer.parameters | layer.buffers).items()
        }

    def _arrays(self, which: str) -> dict[str, Array]:
        return {
            f"{name}.{key}": array
            for name, layer in self.layers.items()
            if which != "gradients" or layer._gradients_of in (None, self._number)
            for key, array in getattr(layer, which).items()
        }

    def drop_gradients(self) -> None:
        """Forget the gradients that the layers hold, those of another network's pass included."""
        for layer in self.layers.values():
            layer.gradients, layer._gradients_of = {}, self._number

    @property
    def parameter_count(self) -> int:
        """How many numbers the network learns."""
        return sum(layer.parameter_count for layer in self.layers.values())

    @property
    def classes(self) -> int:
        """How many logits the last layer gives an image; ValueError where it gives no row."""
        name, shape = list(self.shapes.items())[-1]
        if len(shape) != 1:
            raise ValueError(
                f"{self.name} ends in {name} with an output of shape {shape} for an image; a "
                "classifier ends in (classes,), such as behind Flatten and Linear."
            )
        return shape[0]

    def check_input(self, x: Array, labels: Array | None = None) -> None:
        """Refuse a batch that does not fit this network, and labels that do not fit the batch
        (ValueError, or TypeError for another dtype or library)."""
        array_module(x)
        if x.ndim != 4 or x.shape[1:] != self.input_shape or x.shape[0] < 1:
            wanted = ", ".join(str(size) for size in self.input_shape)
            hint = " For one image use x[None]." if x.shape == self.input_shape else ""
            takes = f"{self.name} takes a batch of shape (N, {wanted}) with N >= 1"
            raise ValueError(f"{takes}, got {x.shape}.{hint}")
        weight = next(iter(self.parameters.values()), x)
        array_module(x, weight)
        if x.dtype != weight.dtype:
            raise TypeError(
                f"{self.name}'s weights are {weight.dtype}, the images are {x.dtype}; "
                f"use x.astype(np.{weight.dtype})."
            )
        if labels is not None:
            array_module(x, labels)
            check_labels(labels, len(x), self.classes)

    def forward(
        self, x: Array, training: bool = False, after: Callable[[str], None] | None = None
    ) -> Array:
        """Run all layers. ``x``: (N, C, H, W); result: (N, classes), same dtype (logits).

        ``after`` is called with each layer's name when the layer has run.
        """
        self.check_input(x)
        if isinstance(x, np.ndarray):  # the caller's: a layer that writes to it is refused
            x = x.view()
            x.flags.writeable = False
        for name, layer in self.layers.items():
            out = layer.forward(x, training)
            if not layer.gives_words:
                self._check_passed(name, "forward", out, (len(x), *self.shapes[name]), x.dtype)
            x, layer._kept_of = out, self._number
            if after is not None:
                after(name)
        return x

    def backward(self, grad_out: Array, after: Callable[[str], None] | None = None) -> None:
        """Fill ``gradients``, from the gradient by the logits down to the first layer that learns.

        ``after`` is called with each layer's name when its gradients are there, and with the names
        of those below as well.
        """
        for name, layer in self.layers.items():
            if layer._kept_of not in (None, self._number):
                raise RuntimeError(
                    f"{self.name}, layer {name}: another network's pass has gone through it since "
                    "this one's; run forward(x, training=True) again, or loss_and_gradients()."
                )
        self.drop_gradients()
        learning = [place for place, layer in enumerate(self.layers.values()) if layer.parameters]
        first = learning[0] if learning else len(self.layers)
        for place, (name, layer) in reversed([*enumerate(self.layers.items())]):
            if place > first:
                made, wanted = layer.backward(grad_out), self.input_shape_of(name)
                self._check_passed(name, "backward", made, (len(grad_out), *wanted), grad_out.dtype)
                grad_out = made
            elif place == first:
                layer.backward_weights(grad_out)
            left = f"{self.name}, layer {name}: backward() left"
            if layer.gradients.keys() != layer.parameters.keys():
                raise RuntimeError(
                    f"{left} gradients for {list(layer.gradients)}, its weights are "
                    f"{list(layer.parameters)}; fill self.gradients with one for each."
                )
            for key, weight in layer.parameters.items():
                found = layer.gradients[key].shape
                if found != weight.shape:
                    raise ValueError(
                        f"{left} a gradient of shape {found} for {key}, whose shape is "
                        f"{weight.shape}."
                    )
            if after is not None:
                after(name)

    def _check_passed(
        self, name: str, what: str, made: Any, shape: tuple[int, ...], dtype: Any
    ) -> None:
        """Refuse what a layer passes on where it is not what the layer says of itself."""
        place = f"{self.name}, layer {name}: {what}() gave"
        if getattr(made, "shape", None) != shape:
            got = getattr(made, "shape", type(made).__name__)
            raise ValueError(f"{place} {got} where output_shape() promises {shape}; mend either.")
        if made.dtype != dtype:
            raise TypeError(
                f"{place} {made.dtype} for {dtype}; keep the dtype that comes in: NumPy's own "
                "float64 widens float32, a plain float does not."
            )

    def loss_and_gradients(self, x: Array, labels: Array, *, scale: float = 1.0) -> float:
        """One training pass, forward and backward: return the loss, leave ``gradients`` filled.

        Args:
            x, labels: a batch, (N, C, H, W) and (N,); see :meth:`check_input`.
            scale: multiplies all gradients, such as a loss scale; the loss stays as it is.

        Returns:
            The mean loss, nats an image.

        >>> from fastdl_lib.nn.zoo import deep_convnet
        >>> network, x = deep_convnet(), np.zeros((2, 1, 28, 28), np.float32)
        >>> loss = network.loss_and_gradients(x, np.array([3, 8]))
        >>> network.gradients["fc2.weight"].shape
        (10, 50)
        """
        self.check_input(x, labels)
        return self.training_pass(x, labels, scale=scale)[0]

    def training_pass(
        self,
        x: Array,
        labels: Array,
        *,
        scale: float = 1.0,
        after_forward: Callable[[str], None] | None = None,
        after_backward: Callable[[str], None] | None = None,
    ) -> tuple[float, int]:
        """As :meth:`loss_and_gradients`, for labels that were checked before; returns also how many
        images were right. ``after_...`` are called with each layer's name when it has run that way,
        the last layer's ``after_forward`` again when the loss is there."""
        logits = self.forward(x, training=True, after=after_forward)
        loss, grad = loss_and_gradient(logits, labels, scale)
        if after_forward is not None:
            after_forward(next(reversed(self.layers)))
        self.backward(grad, after=after_backward)
        return loss_and_right(loss, logits, labels)  # last: a GPU is not kept waiting in between

    def astype(self, dtype: Any) -> "Network":
        """Convert all weights to float16, float32 or float64, in place; return the network. Buffers
        such as running variances stay float32 beside float16, which would not hold them."""
        if np.dtype(dtype) not in (np.float16, np.float32, np.float64):
            raise TypeError(f"weights are float16, float32 or float64, got {np.dtype(dtype)}.")

        def converted(array: Array, to: Any) -> Array:
            return array.astype(to) if array.dtype.kind == "f" else array

        for layer in self.layers.values():
            buffers = {n: converted(a, wide(np.dtype(dtype))) for n, a in layer.buffers.items()}
            layer.map_arrays(lambda array: converted(array, dtype))
            layer.buffers = buffers
        return self

    def to_gpu(self) -> "Network":
        """Move all weights to the GPU in place and return the network (RuntimeError: no GPU)."""
        return self._map_arrays(to_gpu)

    def to_cpu(self) -> "Network":
        """Move all weights to the CPU in place and return the network."""
        return self._map_arrays(to_cpu)

    def _map_arrays(self, rule: Callable[[Array], Array]) -> "Network":
        for layer in self.layers.values():
            layer.map_arrays(rule)
        return self

    def save_weights(self, path: str | os.PathLike, *, packed: bool = False) -> None:
        """Write all weights and buffers to an ``.npz`` file: the whole file, or nothing.

        ``packed`` stores binary weights as a bit each; of the latent ones only the signs are kept.
        """
        path = Path(path)
        if path.suffix != ".npz":
            raise ValueError(f"weights are stored as .npz, got the name {path.name!r}.")
        with whole_file(path) as part:
            layers = ((name, layer.to_store(packed)) for name, layer in self.layers.items())
            np.savez(part, **{f"{n}.{key}": a for n, stored in layers for key, a in stored.items()})

    def load_weights(self, path: str | os.PathLike) -> "Network":
        """Read weights from what :meth:`save_weights` wrote, or from a checkpoint of ``fit``, and
        return the network.

        Raises OSError, ValueError, and changes nothing, where there is no such file, or it is
        damaged, another network's, or holds what these weights cannot be.
        """
        path, arrays = Path(path), read_arrays(path)
        what = f"{path.name} holds {holding(arrays)}"
        if is_checkpoint(arrays):  # whose other arrays are the optimiser's
            start = "weight."
            arrays = {n[len(start) :]: a for n, a in arrays.items() if n.startswith(start)}
        wanted = self.wanted_arrays
        try:
            loaded = self._from_store(arrays)
            loaded = {name: _narrowed(array, wanted.get(name)) for name, array in loaded.items()}
            check_arrays(loaded, wanted)
        except ValueError as error:
            raise ValueError(
                f"{what}, but not {self.name}'s, and nothing was loaded: {error}"
            ) from None
        weights = self.parameters | self.buffers
        ready = {name: beside(loaded[name], old) for name, old in weights.items()}
        for name, old in weights.items():
            # In place: weights stay where they were, on the CPU or the GPU, and in their order.
            old[...] = ready[name]
        return self

    def _from_store(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What a file holds as parameters and buffers; what no layer asks for stays in."""
        for layer_name, layer in self.layers.items():
            start = f"{layer_name}."
            stored = {n[len(start) :]: arrays.pop(n) for n in [*arrays] if n.startswith(start)}
            try:
                held = layer.from_store(stored)
            except (ValueError, TypeError, LookupError) as error:  # packed for other shapes
                raise ValueError(f"{layer_name}: {error}") from None
            arrays |= {start + name: array for name, array in held.items()}
        return arrays


def _narrowed(array: np.ndarray, rule: Wanted | None) -> np.ndarray:
    """A stored array in the dtype that is wanted, where that rounds its numbers at most; itself
    where it is another kind of array."""
    if rule is None or (array.dtype.kind, array.shape) != (rule.dtype.kind, rule.shape):
        return array
    with np.errstate(over="ignore"):
        narrowed = array.astype(rule.dtype, copy=False)
    return narrowed if array.dtype.kind == "f" or (narrowed == array).all() else array


def _checked_pair(network: str, pair: Any) -> tuple[str, Layer]:
    """A layer's name and the layer."""
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not isinstance(pair[0], str):
        raise TypeError(f"{network}: layers are (name, layer) pairs, got {pair!r}.")
    name, layer = pair
    place = f"{network}, layer {name}"
    if not name or "." in name:  # "conv1.weight" is a weight's name
        raise ValueError(f"{network}: a layer's name is text without a dot, got {name!r}.")
    if not isinstance(layer, Layer):
        made = isinstance(layer, type) and issubclass(layer, Layer)
        got = f"the class itself: write {layer.__name__}(...)" if made else f"{layer!r}"
        raise TypeError(f"{place} must be made of a subclass of Layer, got {got}.")
    if not all(hasattr(layer, name) for name in vars(Layer())):
        raise TypeError(
            f"{place}: the __init__ of {type(layer).__name__} does not begin with "
            "super().__init__(); write that as its first line."
        )
    check_choice(f"{place}: kind", layer.kind, KINDS)
    return name, layer


def _checked_shape(what: str, shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, (tuple, list)):
        raise TypeError(f"{what} must be a tuple of whole numbers, got {shape!r}.")
    return tuple(check_whole_number(f"{what} {shape}: each", size, 1) for size in shape)
