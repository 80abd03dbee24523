"""A network in few bits, and training in them: master weights, loss scaling, skipped steps.

In which format values are *stored*, *computed* and *accumulated* are three choices, a
:class:`Precision`. :func:`in_precision` makes a network of them for any format: its arrays are
float32, their values those of the format. A network whose arrays are float16 themselves,
``network.astype(np.float16)``, needs no emulation. :class:`MixedPrecision` trains both.

Source: P. Micikevicius et al., "Mixed precision training", ICLR 2018, section 3.
"""

import copy
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fastdl_lib.core.arrays import array_module, wide
from fastdl_lib.core.checks import check_number, check_whole_number
from fastdl_lib.nn.layers import Layer, RandomLayer, seed_of
from fastdl_lib.nn.network import Network
from fastdl_lib.nn.optimizers import Optimizer
from fastdl_lib.precision.formats import (
    FLOAT16,
    FLOAT32,
    FLOAT64,
    FloatFormat,
    NumberFormat,
    ScaledInteger,
    check_format,
)
from fastdl_lib.precision.products import product

Array = Any  # numpy.ndarray or cupy.ndarray
Shape = tuple[int, ...]

# Below it gradients do not overflow because they are scaled.
LEAST_LOSS_SCALE = 2.0**-10


# --- a network in another format ----------------------------------------------------------------


class Precision(NamedTuple):
    """The formats in which a network's values are stored, multiplied and added up.

    >>> from fastdl_lib.precision.formats import FLOAT16
    >>> Precision(FLOAT16).accumulate.name
    'float32'
    """

    store: NumberFormat
    """Of weights, and of what one layer hands to the next."""
    compute: FloatFormat = FLOAT32
    """Of the factors and of each product."""
    accumulate: FloatFormat = FLOAT32
    """Of each partial sum, and of the bias."""


class Rounding(RandomLayer):
    """Round what passes to a format: values on the way forward, gradients on the way back.

    Stochastic rounding draws in training only; elsewhere it is to nearest, so that a network gives
    one answer. Ranks that share a batch draw for the whole of it. The scale of an integer format is
    that of the whole batch, so that these do not share one. Any shape, float32 or float64.

    >>> from fastdl_lib.precision.formats import FLOAT16
    >>> Rounding(FLOAT16).forward(np.array([[2049, 70000]], np.float32)).tolist()
    [[2048.0, inf]]
    """

    def __init__(self, format: NumberFormat, *, stochastic: bool = False, seed: int = 0) -> None:
        super().__init__(seed)
        check_format("format", format)
        self.format, self.stochastic = format, bool(stochastic)

    @property
    def settings(self) -> dict[str, Any]:
        return {**super().settings, "format": self.format.name}

    def bytes_moved(self, input_shape: Shape, batch: int = 1, bytes_per_value: float = 4) -> int:
        return 0  # the layer before it writes what is rounded here

    @property
    def mixes_images(self) -> bool:
        return isinstance(self.format, ScaledInteger)

    def _round(self, x: Array, draw: bool) -> Array:
        if not draw:
            return self.format.round(x)
        rng, here, shape = self._whole(x)
        if shape == x.shape:
            return self.format.round(x, rng=rng)
        whole = array_module(x).zeros_like(x, shape=shape)
        whole[here] = x
        return self.format.round(whole, rng=rng)[here]

    def forward(self, x: Array, training: bool = False) -> Array:
        out = self._round(x, self.stochastic and training)
        self._keep(training, out)
        return out

    def backward(self, grad_out: Array) -> Array:
        self._recall(grad_out)
        return self._round(grad_out, self.stochastic)


class _RoundedSums(Layer):
    """A layer of products in which every product and every sum is rounded; forward only.

    Each sum goes over k = 0, 1, 2, ... (channel, row and column of a filter) from zero. The bias,
    rounded to ``accumulate``, is added last, and that sum is rounded as well.
    """

    def __init__(self, layer: Layer, precision: Precision) -> None:
        super().__init__()
        if type(layer).sums_by is Layer.sums_by:
            raise TypeError(
                f"a {type(layer).__name__} does not say how products of matrices make its sums, so "
                "that they cannot be rounded: define sums_by(self, product, x), as Linear does."
            )
        self.layer, self.kind = layer, layer.kind
        self.parameters, self.buffers = layer.parameters, layer.buffers
        self.compute, self.accumulate = precision.compute, precision.accumulate
        self.sums_in = np.float64 if self.accumulate == FLOAT64 else np.float32

    def output_shape(self, input_shape: Shape) -> Shape:
        return self.layer.output_shape(input_shape)

    def macs(self, input_shape: Shape) -> int:
        return self.layer.macs(input_shape)

    @property
    def parameter_count(self) -> int:
        return self.layer.parameter_count

    def bytes_moved(self, input_shape: Shape, batch: int = 1, bytes_per_value: float = 4) -> int:
        return self.layer.bytes_moved(input_shape, batch, bytes_per_value)

    def map_arrays(self, rule: Callable[[Array], Array]) -> None:
        self.layer.map_arrays(rule)
        self.parameters, self.buffers = self.layer.parameters, self.layer.buffers

    def _product(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        formats = {"compute": self.compute, "accumulate": self.accumulate}
        return product(a, b, **formats, dtype=self.sums_in)

    def forward(self, x: Array, training: bool = False) -> Array:
        sums_in = np.promote_types(x.dtype, self.sums_in)  # they come in the dtype of what is given
        out = self.layer.sums_by(self._product, x.astype(sums_in, copy=False))
        bias = self.parameters["bias"]
        bias = self.accumulate.round(bias).reshape(-1, *[1] * (out.ndim - 2))
        # Sums of two in float64 are exact for every format that adds up here: rounded once.
        with np.errstate(invalid="ignore"):
            out = out + bias.astype(np.float64)
        return self.accumulate.round(out).astype(x.dtype)

    def backward(self, grad_out: Array) -> Array:
        raise RuntimeError(
            f"a network that computes in {self.compute.name} and accumulates in "
            f"{self.accumulate.name} runs forward only; to train, store in few bits and compute in "
            "float32: in_precision(network, Precision(FLOAT16))."
        )


def in_precision(
    network: Network, precision: Precision, *, stochastic: bool = False, seed: int = 0
) -> Network:
    """Make a copy of a network whose values are all stored, and computed, in given formats.

    The weights are rounded copies. A :class:`Rounding` stands first, ``"input stored"``, and behind
    every layer that makes new values, such as ``"conv1 stored"``; ReLU and max-pooling make none.

    The arrays are float32 and hold the format's values (float64 where both ``compute`` and
    ``accumulate`` are). With other formats to compute or accumulate in, Conv2d and Linear add up
    one rounded product after the other: slow, on the CPU, forward only. Of int8 per channel only
    weights have a scale for each output channel.

    Args:
        network: stays as it is, and shares nothing with the copy.
        precision: such as ``Precision(FLOAT16)``.
        stochastic: round weights, and in training what passes, stochastically.
        seed: decides those draws; ``fit`` seeds the layers anew for each epoch.

    With ``Precision(FLOAT32)`` it gives the outputs of a float32 network bit for bit.

    Raises TypeError: another precision, or a layer whose sums cannot be rounded; ValueError: the
    network has roundings already.

    >>> from fastdl_lib import deep_convnet
    >>> from fastdl_lib.precision.formats import FLOAT16
    >>> half = in_precision(deep_convnet(), Precision(FLOAT16))
    >>> half.name, list(half.layers)[:4]
    ('DeepConvNet in float16', ['input stored', 'conv1', 'conv1 stored', 'relu1'])
    """
    if not isinstance(precision, Precision):
        raise TypeError(f"precision must be one such as Precision(FLOAT16), got {precision!r}.")
    check_format("store", precision.store)
    check_format("compute", precision.compute, FloatFormat)
    check_format("accumulate", precision.accumulate, FloatFormat)
    if any(isinstance(layer, (Rounding, _RoundedSums)) for layer in network.layers.values()):
        raise ValueError(f"{network.name} is rounded already; take the network it was made from.")
    store, compute, accumulate = precision
    plain = compute == accumulate and compute in (FLOAT32, FLOAT64)
    dtype = np.float64 if plain and compute == FLOAT64 else np.float32
    passing = ScaledInteger(store.bits) if isinstance(store, ScaledInteger) else store
    weights, rng = network.parameters.values(), None
    if stochastic:
        xp = array_module(*weights) if weights else np
        rng = xp.random.default_rng(seed_of(seed, 0, 0))
    made: list[tuple[str, Layer]] = []

    def add_rounding(name: str) -> None:
        layer_seed = seed_of(seed, 1, len(made))
        made.append((f"{name} stored", Rounding(passing, stochastic=stochastic, seed=layer_seed)))

    add_rounding("input")
    for name, layer in network.layers.items():
        twin = _copy(layer, store, dtype, rng)
        if not plain and layer.macs(network.input_shape_of(name)):
            twin = _RoundedSums(twin, precision)
        made.append((name, twin))
        if layer.makes_values:
            add_rounding(name)
    return Network(f"{network.name} in {store.name}", made, network.input_shape)


def _copy(layer: Layer, format: NumberFormat, dtype: Any, rng: Any) -> Layer:
    """A copy of a layer with rounded copies of its weights, in their order of memory."""
    twin = copy.copy(layer)
    twin.map_arrays(lambda array: array.astype(dtype if array.dtype.kind == "f" else array.dtype))
    twin.reseed(getattr(layer, "seed", 0))  # with draws of its own
    for name, weight in twin.parameters.items():
        old = layer.parameters[name]  # rounded once, straight from its own dtype
        weight[...] = format.of(old).round(old.astype(wide(old.dtype), copy=False), rng=rng)
    return twin


def weight_bytes(network: Network, format: NumberFormat) -> int:
    """Count the bytes that all weights take in a format, scales of integers included.

    A value takes 1, 2, 4 or 8 whole bytes, a scale 4. Biases of int8 per channel share one scale.

    >>> from fastdl_lib import deep_convnet
    >>> from fastdl_lib.precision.formats import FLOAT16, INT8
    >>> weight_bytes(deep_convnet(), FLOAT16), weight_bytes(deep_convnet(), INT8)
    (247104, 123616)
    """
    check_format("format", format)
    value_bytes = next(size for size in (1, 2, 4, 8) if format.bits <= 8 * size)
    total = value_bytes * network.parameter_count
    if isinstance(format, ScaledInteger):
        for weight in network.parameters.values():
            axis = format.of(weight).axis
            total += 4 * (1 if axis is None else weight.shape[axis])
    return total


# --- training -----------------------------------------------------------------------------------


class DynamicLossScale:
    """A loss scale that looks for the largest one at which gradients do not overflow.

    A step whose gradients overflow halves it, ``interval`` good ones in a row double it.

    Args:
        start: above 0; a power of two changes no digit of a gradient.
        interval: steps, from 1 up.

    Source: P. Micikevicius et al., "Mixed precision training", ICLR 2018, section 3.2, names the
    idea; the constants are those of frameworks, with a shorter interval for short runs.

    >>> scale = DynamicLossScale(start=1024, interval=2)
    >>> for overflowed in (True, False, False):
    ...     scale.update(overflowed)
    ...     print(scale.scale)
    512.0
    512.0
    1024.0
    """

    def __init__(self, start: float = 2.0**15, interval: int = 200) -> None:
        check_number("start", start, low=LEAST_LOSS_SCALE)
        self.interval = check_whole_number("interval", interval, 1)
        self.scale = self.start = float(start)
        """The scale now."""
        self.good_steps = 0
        """Steps without an overflow since the scale last changed."""

    def update(self, overflowed: bool) -> None:
        """Take in how a step went; FloatingPointError where the scale has become so small that it
        cannot be the cause."""
        if overflowed:
            if self.scale / 2 < LEAST_LOSS_SCALE:
                raise FloatingPointError(
                    f"gradients are not finite even at a loss scale of {self.scale:.3g}: scaling "
                    "is not the cause. Try a lower learning rate, a format with a wider range "
                    "(bfloat16), and see that images and weights are finite."
                )
            self.scale, self.good_steps = self.scale / 2, 0
            return
        self.good_steps += 1
        if self.good_steps == self.interval:
            self.scale, self.good_steps = min(2 * self.scale, sys.float_info.max), 0


def _are_finite(arrays: dict[str, Array]) -> bool:
    """Whether all values are; one number comes back from a GPU."""
    xp = array_module(*arrays.values())
    return bool(xp.stack([xp.isfinite(array).all() for array in arrays.values()]).all())


class MixedPrecision(Optimizer):
    """Another optimiser's steps for a network whose weights are stored in few bits.

    A step takes the gradients as the format stores them, divides them by the loss scale in float32,
    and lets the other optimiser change float32 *master weights*; the network gets these rounded.
    Changes too small for one step's rounding add up in them. A step with a gradient that is not
    finite is left out: weights and memory stay, ``skipped`` counts it.

    ``fit`` multiplies the loss by ``loss_scale``. Where you call yourself::

        network.loss_and_gradients(x, labels, scale=optimizer.loss_scale)
        optimizer.step(network)

    Args:
        optimizer: such as ``SGD(0.1)`` or ``Adam()``; it belongs to this one from then on.
        storage: the format of weights and gradients. For a network of float16 arrays FLOAT16; for
            one from :func:`in_precision` its ``store``.
        master_weights: False: the stored weights are the only ones, and are changed in float32
            and rounded again at every step.
        loss_scale: a number above 0, best a power of two, or a :class:`DynamicLossScale`. Fixed
            point and integers do not overflow but saturate, silently: for them a number.
        stochastic: round gradients and weights stochastically.
        seed: decides those draws, with the step's number; nothing else needs to be kept.

    Sources: Micikevicius et al. 2018, sections 3.1 and 3.2; without master weights S. Gupta et al.,
    "Deep learning with limited numerical precision", ICML 2015.

    >>> from fastdl_lib import deep_convnet
    >>> from fastdl_lib.nn.optimizers import SGD
    >>> network, x = deep_convnet().astype(np.float16), np.ones((2, 1, 28, 28), np.float16)
    >>> optimizer = MixedPrecision(SGD(0.01), FLOAT16)
    >>> loss = network.loss_and_gradients(x, np.array([3, 8]))
    >>> optimizer.step(network)
    >>> optimizer.state["master.fc2.weight"].dtype, network.parameters["fc2.weight"].dtype
    (dtype('float32'), dtype('float16'))
    """

    def __init__(
        self,
        optimizer: Optimizer,
        storage: NumberFormat,
        *,
        master_weights: bool = True,
        loss_scale: float | DynamicLossScale = 1.0,
        stochastic: bool = False,
        seed: int = 0,
    ) -> None:
        if not isinstance(optimizer, Optimizer) or isinstance(optimizer, MixedPrecision):
            raise TypeError(f"optimizer must be a plain one such as Adam(), got {optimizer!r}.")
        check_format("storage", storage)
        self.seed = check_whole_number("seed", seed, 0)
        self.dynamic = loss_scale if isinstance(loss_scale, DynamicLossScale) else None
        if self.dynamic is None:
            check_number("loss_scale", loss_scale, low=0, low_included=False)
            self._constant_scale = float(loss_scale)
        elif not isinstance(storage, FloatFormat):
            raise ValueError(
                f"{storage.name} saturates where a float overflows, so that nothing tells when a "
                "loss scale is too large; give a number, such as loss_scale=256."
            )
        self.skipped = 0
        """Steps left out because a gradient was not finite."""
        super().__init__(optimizer.learning_rate)
        self.steps, self.state = optimizer.steps, optimizer.state
        self.optimizer, self.storage = optimizer, storage
        self.master_weights, self.stochastic = bool(master_weights), bool(stochastic)
        self.memory = (*optimizer.memory, *(["master"] if master_weights else []))
        self.not_negative = optimizer.not_negative

    @property
    def numbers(self) -> dict[str, float]:
        """Skipped steps, and a dynamic loss scale with its good steps."""
        numbers: dict[str, float] = {"skipped": self.skipped}
        if self.dynamic is not None:
            numbers |= {"scale": self.dynamic.scale, "good_steps": self.dynamic.good_steps}
        return numbers

    @numbers.setter
    def numbers(self, numbers: dict[str, float]) -> None:
        if self.dynamic is not None and "scale" in numbers:
            check_number("scale", numbers["scale"], low=LEAST_LOSS_SCALE)
            check_number("good_steps", numbers["good_steps"], low=0, high=self.dynamic.interval)
            self.dynamic.scale, self.dynamic.good_steps = numbers["scale"], numbers["good_steps"]
        self.skipped = numbers.get("skipped", 0)

    @property
    def loss_scale(self) -> float:
        """The factor of the loss's gradient at the next step."""
        return self._constant_scale if self.dynamic is None else self.dynamic.scale

    @property
    def settings(self) -> dict[str, Any]:
        """Of both optimisers."""
        scale: Any = self.loss_scale
        if self.dynamic is not None:
            start, interval = self.dynamic.start, self.dynamic.interval
            scale = {"start": start, "growth": 2.0, "backoff": 0.5, "interval": interval}
        inner = self.optimizer.settings
        return {
            **inner,
            "optimizer": f"MixedPrecision of {inner['optimizer']}",
            "learning_rate": self.learning_rate,
            "storage": self.storage.name,
            "master weights": self.master_weights,
            "loss scale": scale,
            "rounding": f"stochastic, seed {self.seed}" if self.stochastic else "to nearest",
        }

    def step(self, network: Network) -> None:
        """Change ``network``'s weights, in place, by the scaled gradients of its last backward
        pass; or skip the step, where one is not finite.

        Raises RuntimeError, ValueError: as :meth:`Optimizer.step`, or the storage does not go with
        the network; nothing is changed. FloatingPointError: a dynamic loss scale became too small;
        at a step to be skipped, the weights are not finite themselves.
        """
        self._check_network(network)
        gradients, weights = self.checked_gradients(network), network.parameters
        xp, rng = array_module(*weights.values(), *gradients.values()), None
        if self.stochastic:
            rng = xp.random.default_rng(seed_of(self.seed, self.steps, self.skipped))
        # Fixed point and integers take finite values only.
        finite = isinstance(self.storage, FloatFormat) or _are_finite(gradients)
        if finite:
            gradients = {name: self._unscaled(g, rng) for name, g in gradients.items()}
            finite = _are_finite(gradients)
        if not (finite or _are_finite(weights)):
            raise FloatingPointError(
                "weights are NaN or infinite, not only gradients: no loss scale mends that. Start "
                "again from finite ones, with a lower learning rate."
            )
        self.skipped += not finite
        if self.dynamic is not None:
            self.dynamic.update(not finite)
        if not finite:
            return
        working = {name: self._working_copy(name, weight) for name, weight in weights.items()}
        inner = self.optimizer
        # What is remembered, counted and set by a schedule is kept here, for both.
        inner.learning_rate, inner.steps, inner.state = self.learning_rate, self.steps, self.state
        inner.update(working, gradients)
        self.steps = inner.steps
        for name, weight in weights.items():
            weight[...] = self.storage.of(weight).round(working[name], rng=rng)

    def _check_network(self, network: Network) -> None:
        for name, layer in network.layers.items():
            if type(layer).after_step is not Layer.after_step:
                raise ValueError(
                    f"{name}, a {type(layer).__name__}, changes its weights after a step, and "
                    "would not see the master weights: train it with a plain optimiser."
                )
        for name, weight in network.parameters.items():
            if weight.dtype == np.float16 and self.storage != FLOAT16:
                raise ValueError(
                    f"{name} is a float16 array, which holds no {self.storage.name}; use "
                    "MixedPrecision(..., FLOAT16), or in_precision() with its float32 arrays."
                )

    def _unscaled(self, gradient: Array, rng: Any) -> Array:
        """A gradient as the format stores it, without the loss scale; float32 or float64."""
        if gradient.dtype != np.float16:  # such an array is stored so already
            gradient = self.storage.of(gradient).round(gradient, rng=rng)
        with np.errstate(over="ignore"):
            return gradient.astype(wide(gradient.dtype)) / self.loss_scale

    def _working_copy(self, name: str, weight: Array) -> Array:
        """What the other optimiser changes: the master weight, or a copy that lasts for a step."""
        key = f"master.{name}"
        if key in self.state:
            return self.state[key]
        copied = weight.astype(wide(weight.dtype))
        if self.master_weights:
            self.state[key] = copied
        return copied
