"""What a layer is to everything else: a network, an optimiser, a count of costs, a file.

A layer keeps the dtype and the library (NumPy or CuPy) of what it is given. Its weights live in
``parameters``, their gradients in ``gradients`` under the same names; what it remembers but does
not learn by gradients lives in ``buffers``.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fastdl_lib.core.arrays import array_module, to_cpu

Array = Any  # numpy.ndarray or cupy.ndarray
Shape = tuple[int, ...]


class Layer:
    """What a layer says of itself; everything else asks it, so that a new layer is one class.

    ``forward`` and ``backward`` are enough for a layer without weights. One with weights fills
    ``parameters`` in its ``__init__``, ``gradients`` in ``backward``, and says its ``macs``.
    """

    kind: str = "other"
    """What its time is summed under: one of :data:`fastdl_lib.measuring.costs.KINDS`."""
    algorithm: str | None = None
    """How it computes, where that can be chosen (set it); None: there is one way."""
    mixes_images = False
    """Whether the output for an image depends on the others of its batch, in training."""
    makes_values = True
    """False: what it puts out are values that came in, or zero; there is nothing to round."""
    not_negative: tuple[str, ...] = ()
    """Names of the weights and buffers in which no number can be below 0, such as a variance."""
    gives_words = False
    """Whether it gives words of bits, of another shape and dtype than its values'."""

    def __init__(self) -> None:
        self.parameters: dict[str, Array] = {}
        self.gradients: dict[str, Array] = {}
        self.buffers: dict[str, Array] = {}
        self._kept: tuple[Shape, Any, tuple] | None = None
        # The network whose forward, and backward, pass it ran last; networks may share it.
        self._kept_of = self._gradients_of = None

    def output_shape(self, input_shape: Shape) -> Shape:
        """Of one output for one input, without the batch axis; ValueError where it takes none."""
        return input_shape

    def forward(self, x: Array, training: bool = False) -> Array:
        """Return the layer's output for a batch ``x``, same dtype; ``x`` stays as it is."""
        raise self._lacks("forward(self, x, training=False)")

    def backward(self, grad_out: Array) -> Array:
        """Take the gradient of the loss by the output, return the one by the input; leave those by
        the weights in ``gradients``."""
        raise self._lacks("backward(self, grad_out)")

    def backward_weights(self, grad_out: Array) -> None:
        """As ``backward``, where nobody asks for the gradient by the input."""
        self.backward(grad_out)

    # --- what it costs ---

    @property
    def parameter_count(self) -> int:
        """How many values it learns, in whatever format they are kept."""
        return sum(array.size for array in self.parameters.values())

    def macs(self, input_shape: Shape) -> int:
        """Multiplications by weights that one image takes, each with its addition; a layer that
        has weights must say (else TypeError)."""
        if self.parameters or self.buffers:
            raise TypeError(
                f"{type(self).__name__} has weights but does not say what it costs: define "
                "macs(self, input_shape) in it, which returns the MACs of one image."
            )
        return 0

    def stored_bytes(self, bytes_per_value: float = 4) -> float:
        """Of its weights and buffers."""
        values = self.parameter_count + sum(array.size for array in self.buffers.values())
        return values * bytes_per_value

    def output_bytes(self, input_shape: Shape, bytes_per_value: float = 4) -> float:
        """Of what it gives for one image."""
        return math.prod(self.output_shape(input_shape)) * bytes_per_value

    def bytes_moved(self, input_shape: Shape, batch: int = 1, bytes_per_value: float = 4) -> int:
        """The least that a forward pass reads and writes: input, output, weights, buffers."""
        image = math.prod(input_shape) * bytes_per_value
        image += self.output_bytes(input_shape, bytes_per_value)
        return math.ceil(batch * image + self.stored_bytes(bytes_per_value))

    def sums_by(self, product: Callable[[Array, Array], Array], x: Array) -> Array:
        """Its output without the bias, where ``product(a, b)`` multiplies matrices; optional."""
        raise self._lacks("sums_by(self, product, x)")

    def _lacks(self, method: str) -> NotImplementedError:
        return NotImplementedError(f"{type(self).__name__} does not define {method}.")

    # --- where its arrays lie, and how they are stored ---

    def map_arrays(self, rule: Callable[[Array], Array]) -> None:
        """Put ``rule(array)`` in the place of every weight and buffer; gradients are dropped."""
        self.parameters = {name: rule(array) for name, array in self.parameters.items()}
        self.buffers = {name: rule(array) for name, array in self.buffers.items()}
        self.gradients, self._gradients_of = {}, None

    def to_store(self, packed: bool = False) -> dict[str, np.ndarray]:
        """Name to array of what a weights file keeps; ``packed``: in as few bits as there are."""
        return {name: to_cpu(array) for name, array in (self.parameters | self.buffers).items()}

    def from_store(self, stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The way back: what parameters and buffers are to hold; changes nothing."""
        return stored

    @property
    def settings(self) -> dict[str, Any]:
        """Its class and constants, such as a Dropout's rate; the seed is the run's affair."""
        constants = {"class": type(self).__name__, "algorithm": self.algorithm, **vars(self)}
        return {
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in constants.items()
            if isinstance(value, (int, float, str, np.generic)) and name[0] != "_"
            if name != "seed"
        }

    # --- in training ---

    def reseed(self, seed: int) -> None:
        """Begin the layer's random draws anew from ``seed``; most layers draw nothing."""

    def share(self, here: slice | None, images: int) -> None:
        """Draw as one process would for ``images``, of which those ``here`` come (None: all)."""

    def after_step(self) -> None:
        """What a layer does to its weights, in place, once an optimiser has changed them."""

    def _keep(self, training: bool, out: Array, *values: Any) -> None:
        """Keep in training what backward needs; out of training let go of it."""
        self._kept = (out.shape, out.dtype, values) if training else None

    def _recall(self, grad_out: Array) -> tuple:
        """What forward kept, once the gradient fits; it is let go, each serves once."""
        if self._kept is None:
            raise RuntimeError(
                f"{type(self).__name__}.backward() needs a forward(x, training=True) before it."
            )
        out_shape, out_dtype, values = self._kept
        takes = f"{type(self).__name__}.backward() takes a gradient of the output's"
        if grad_out.shape != out_shape:
            raise ValueError(f"{takes} shape {out_shape}, got {grad_out.shape}.")
        if grad_out.dtype != out_dtype:
            raise TypeError(
                f"{takes} dtype {out_dtype}, got {grad_out.dtype}; use grad.astype(np.{out_dtype})."
            )
        self._kept = None
        return values


_AXES = {2: "(N, features)", 4: "(N, C, H, W)"}


def check_batch(layer: Layer, x: Array, *axes: int) -> None:
    """Refuse what is no array of floats (TypeError), has another number of axes than one of these
    (none given: any), or is empty (ValueError)."""
    array_module(x)
    name = type(layer).__name__
    if x.dtype not in (np.float16, np.float32, np.float64):
        raise TypeError(
            f"{name} takes float16, float32 or float64, got {x.dtype}; use x.astype(np.float32)."
        )
    if (axes and x.ndim not in axes) or 0 in x.shape:
        shapes = " or ".join(_AXES[count] for count in axes) or "(N, ...)"
        raise ValueError(f"{name} takes a batch of shape {shapes}, no size 0; got {x.shape}.")


def check_image_shape(layer: Layer, input_shape: Shape) -> Shape:
    """Refuse the shape of anything but an image, (C, H, W), and return it (ValueError)."""
    if len(input_shape) != 3:
        raise ValueError(
            f"this {type(layer).__name__} takes images of shape (C, H, W), got {input_shape}."
        )
    return input_shape
