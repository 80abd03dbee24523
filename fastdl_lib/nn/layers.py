"""The layers of AlexNet and of the book's DeepConvNet, forward and backward."""

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from fastdl_lib.convolution.algorithms import ALGORITHMS, choose
from fastdl_lib.convolution.geometry import Geometry, check_window, output_size, tap_views
from fastdl_lib.convolution.im2col import im2col
from fastdl_lib.core.arrays import array_module, rounded, wide
from fastdl_lib.core.checks import check_choice, check_number, check_whole_number
from fastdl_lib.core.threads import CACHE_BYTES, blocks, in_flat_blocks, in_parallel
from fastdl_lib.kernels.compiled import suits
from fastdl_lib.kernels.pixels import where_positive
from fastdl_lib.nn.base import Array, Layer, Shape, check_batch, check_image_shape

# So many bytes of columns are laid out at once, where products are rounded one by one.
COLUMN_BYTES = 2**25


def _he_normal(rng: np.random.Generator, shape: Shape, fan_in: int) -> np.ndarray:
    """Normal weights of variance 2 / fan_in (He et al. 2015), float32 from the first bit on."""
    if not isinstance(rng, np.random.Generator):
        raise TypeError(
            f"rng must be a NumPy generator, such as np.random.default_rng(0); got {rng!r}."
        )
    scale = np.float32(np.sqrt(2.0 / fan_in))
    return rng.standard_normal(shape, dtype=np.float32) * scale


def in_rows(work: Callable[[slice], None], rows: Array) -> None:
    """Share ``work`` on slices of an array's rows among threads, as much at a time as the cache
    holds; see :func:`~fastdl_lib.core.threads.in_parallel`."""
    in_parallel(work, len(rows), row_bytes=rows[0].nbytes, on=rows)


def _like(x: Array, shape: Shape) -> Array:
    """An empty array of x's library, dtype and order in memory (such as channels last)."""
    return array_module(x).empty_like(x, shape=shape)


class _Weighted(Layer):
    """A layer that saves work where nobody asks for the gradient by its input.

    Where processes share a batch, gradients that it has summed in float64 stay so: added up over
    all of them, and rounded then, they are those of one process.
    """

    _is_shared = False

    def backward(self, grad_out: Array) -> Array:
        return self._backward(grad_out, need_grad_x=True)

    def backward_weights(self, grad_out: Array) -> None:
        self._backward(grad_out, need_grad_x=False)

    def share(self, here: slice | None, images: int) -> None:
        self._is_shared = here is not None

    def _set_gradients(self, **sums: Array) -> None:
        dtype = self.parameters["weight"].dtype
        self.gradients = {
            name: total if self._is_shared and dtype == np.float32 else rounded(total, dtype)
            for name, total in sums.items()
        }

    def _backward(self, grad_out: Array, need_grad_x: bool) -> Array | None:
        raise NotImplementedError


class Conv2d(_Weighted):
    """Convolution with square filters. Input (N, C, H, W), output (N, K, OH, OW).

    Args:
        in_channels, out_channels: C and K.
        kernel: height and width of a filter; stride and padding in pixels, too.
        groups: the channels are cut into this many parts that do not see each other.
        algorithm: a key of :data:`~fastdl_lib.convolution.algorithms.ALGORITHMS`, or ``"auto"``:
            Winograd's where it saves work (in training in large layers alone), blocked elsewhere
            and for float16, "gpu" on the GPU. It may be set later.
        rng: where the seeded random weights come from, such as ``np.random.default_rng(0)``.

    Raises TypeError, ValueError: as Geometry.of; rng is no generator; no such algorithm.

    >>> layer = Conv2d(3, 96, 11, stride=4, rng=np.random.default_rng(0))
    >>> layer.forward(np.zeros((2, 3, 227, 227), np.float32)).shape
    (2, 96, 55, 55)
    """

    kind = "conv"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        algorithm: str = "auto",
        rng: np.random.Generator,
    ) -> None:
        super().__init__()
        in_channels = check_whole_number("in_channels", in_channels, 1)
        out_channels = check_whole_number("out_channels", out_channels, 1)
        groups = check_whole_number("groups", groups, 1)
        kernel, stride, padding = check_window(kernel, stride, padding)
        if in_channels % groups or out_channels % groups:
            channels = f"in_channels={in_channels} and out_channels={out_channels}"
            raise ValueError(f"groups={groups} must divide {channels}.")
        self.in_channels, self.out_channels, self.kernel = in_channels, out_channels, kernel
        self.stride, self.padding, self.groups = stride, padding, groups
        group_channels = in_channels // groups
        shape = (out_channels, group_channels, kernel, kernel)
        weight = _he_normal(rng, shape, group_channels * kernel**2)
        self.parameters = {"weight": weight, "bias": np.zeros(out_channels, dtype=np.float32)}
        self.algorithm = algorithm

    def output_shape(self, input_shape: Shape) -> Shape:
        channels, height, width = check_image_shape(self, input_shape)
        if channels != self.in_channels:
            raise ValueError(f"this Conv2d takes {self.in_channels} channels, got {channels}.")
        window = (self.kernel, self.stride, self.padding)
        return self.out_channels, output_size(height, *window), output_size(width, *window)

    def macs(self, input_shape: Shape) -> int:
        filter_size = self.in_channels // self.groups * self.kernel**2
        return math.prod(self.output_shape(input_shape)) * filter_size

    def map_arrays(self, rule: Callable[[Array], Array]) -> None:
        super().map_arrays(rule)
        self.algorithm = self.algorithm  # copies over the bus lose the layout in memory

    @property
    def algorithm(self) -> str:
        """A key of ALGORITHMS, or "auto". Setting it lays the weights out in memory
        as the algorithm reads them; their shape and values stay."""
        return self._algorithm

    @algorithm.setter
    def algorithm(self, name: str) -> None:
        check_choice("algorithm", name, ["auto", *ALGORITHMS])
        self._algorithm = name
        weight = self.parameters["weight"]
        xp = array_module(weight)
        if name == "auto" or ALGORITHMS[name].channels_last:
            weight = xp.ascontiguousarray(weight.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        else:
            weight = xp.ascontiguousarray(weight)
        # A dictionary of its own, should a copy of the layer share the old one.
        self.parameters = {**self.parameters, "weight": weight}

    def algorithm_for(self, x: Array, training: bool = False) -> str:
        """What a batch ``x`` is computed by, never "auto"."""
        return choose(self.algorithm, x, self._geometry(x), training).name

    def _geometry(self, x: Array) -> Geometry:
        check_batch(self, x, 4)
        window = {"stride": self.stride, "padding": self.padding, "groups": self.groups}
        return Geometry.of(x, self.parameters["weight"], self.parameters.get("bias"), **window)

    def forward(self, x: Array, training: bool = False) -> Array:
        weight, bias = self.parameters["weight"], self.parameters["bias"]
        geometry = self._geometry(x)
        row = choose(self.algorithm, x, geometry, training)
        out = row.forward(x, weight, bias, geometry)
        if training and row.set_unseen is not None:
            row.set_unseen(x, bias, out, geometry)
        self._keep(training, out, x, row, geometry)
        return out

    def sums_by(self, product: Callable[[Array, Array], Array], x: Array) -> Array:
        filters, out_h, out_w = self.output_shape(x.shape[1:])
        matrices = self.parameters["weight"].reshape(self.groups, filters // self.groups, -1)
        out = np.empty((len(x), self.groups, filters // self.groups, out_h * out_w), x.dtype)
        image_bytes = x.itemsize * self.in_channels * self.kernel**2 * out_h * out_w
        for part in blocks(slice(0, len(x)), max(1, COLUMN_BYTES // image_bytes)):
            columns = im2col(x[part], (self.kernel, self.kernel), self.stride, self.padding)
            columns = columns.reshape(len(columns), self.groups, -1, out_h * out_w)
            for group, matrix in enumerate(matrices):
                side_by_side = columns[:, group].transpose(1, 0, 2).reshape(matrix.shape[1], -1)
                made = product(matrix, side_by_side).reshape(len(matrix), len(columns), -1)
                out[part, group] = made.transpose(1, 0, 2)
        return out.reshape(len(x), filters, out_h, out_w)

    def _backward(self, grad_out: Array, need_grad_x: bool) -> Array | None:
        x, row, geometry = self._recall(grad_out)
        grad_x, grad_weight, grad_bias = row.backward(
            grad_out, x, self.parameters["weight"], geometry, need_grad_x
        )
        self._set_gradients(weight=grad_weight, bias=grad_bias)
        return grad_x


class MaxPool2d(Layer):
    """The largest value in each window; windows overlap where stride < kernel, as in AlexNet.

    Input (N, C, H, W), any float dtype, output (N, C, OH, OW). Windows that do not fit whole
    are dropped. Where several values tie, the first in row order gets the gradient.

    >>> MaxPool2d(3, stride=2).forward(np.zeros((2, 96, 55, 55), np.float32)).shape
    (2, 96, 27, 27)
    """

    kind, makes_values = "pool", False

    def __init__(self, kernel: int, *, stride: int | None = None) -> None:
        super().__init__()
        stride = kernel if stride is None else stride
        self.kernel, self.stride, _ = check_window(kernel, stride, 0)

    def output_shape(self, input_shape: Shape) -> Shape:
        channels, height, width = check_image_shape(self, input_shape)
        window = (self.kernel, self.stride)
        return channels, output_size(height, *window), output_size(width, *window)

    def forward(self, x: Array, training: bool = False) -> Array:
        check_batch(self, x, 4)
        out = _like(x, (len(x), *self.output_shape(x.shape[1:])))
        pixels = [a.transpose(0, 2, 3, 1) for a in (x, out)]
        loops = _loops(*pixels)

        def work(part: slice) -> None:
            if loops:
                loops.largest(*(a[part] for a in pixels), self.kernel, self.stride)
                return
            (_, _, first), *others = tap_views(x[part], (self.kernel, self.kernel), self.stride)
            out[part] = first
            for _, _, tap in others:
                array_module(x).maximum(out[part], tap, out=out[part])

        in_rows(work, x)
        self._keep(training, out, x, out)
        return out

    def backward(self, grad_out: Array) -> Array:
        x, out = self._recall(grad_out)
        xp = array_module(x, grad_out)
        grad_x = _like(x, x.shape)
        kernel = (self.kernel, self.kernel)
        pixels = [a.transpose(0, 2, 3, 1) for a in (x, out, grad_out, grad_x)]
        if suits(pixels[0], pixels[1]):  # but a layer above may order its gradient otherwise
            pixels[2] = np.ascontiguousarray(pixels[2])
        loops = _loops(*pixels)

        def work(images: slice) -> None:
            if loops:
                loops.largest_back(*(a[images] for a in pixels), self.kernel, self.stride)
                return
            # Itself, but for float16: there windows that overlap are added up in float32.
            grads = grad_x[images].astype(wide(x.dtype), copy=False)
            grads[...] = 0
            free = xp.ones_like(out[images], dtype=bool)
            taps, grad_taps = (tap_views(a, kernel, self.stride) for a in (x[images], grads))
            for (_, _, tap), (_, _, grad_tap) in zip(taps, grad_taps, strict=True):
                first_largest = tap == out[images]
                first_largest &= free
                free ^= first_largest
                if self.stride >= self.kernel:  # windows do not overlap
                    xp.multiply(grad_out[images], first_largest, out=grad_tap)
                else:
                    grad_tap += grad_out[images] * first_largest
            if grads.dtype != x.dtype:
                grad_x[images] = grads

        in_rows(work, x)
        return grad_x


def _loops(*pixels: Any) -> ModuleType | None:
    """The compiled loops, where they take these arrays."""
    if not suits(*pixels):
        return None
    from fastdl_lib.kernels import pooling, vectors  # Numba takes a while to import

    return pooling if vectors.lanes() else None


class ReLU(Layer):
    """Negative values become 0. Any shape, any float dtype.

    >>> ReLU().forward(np.array([[-1.0, 2.0]], np.float32)).tolist()
    [[0.0, 2.0]]
    """

    kind, makes_values = "relu", False

    def forward(self, x: Array, training: bool = False) -> Array:
        check_batch(self, x)
        xp, out = array_module(x), _like(x, x.shape)
        in_rows(lambda part: xp.maximum(x[part], 0, out=out[part]), x)
        self._keep(training, out, out)
        return out

    def backward(self, grad_out: Array) -> Array:
        (out,) = self._recall(grad_out)
        grad_x = _like(out, out.shape)

        def work(grads: Array, values: Array, into: Array) -> None:
            if suits(grads, values, into) and values.ndim == 1:
                where_positive()(grads, values, into)
            else:
                array_module(values).multiply(grads, values > 0, out=into)

        in_flat_blocks(work, [grad_out, out, grad_x])
        return grad_x


class Flatten(Layer):
    """From (N, C, H, W) to (N, C * H * W), without a copy.

    >>> Flatten().forward(np.zeros((2, 256, 6, 6), np.float32)).shape
    (2, 9216)
    """

    makes_values = False

    def output_shape(self, input_shape: Shape) -> Shape:
        return (math.prod(check_image_shape(self, input_shape)),)

    def bytes_moved(self, input_shape: Shape, batch: int = 1, bytes_per_value: float = 4) -> int:
        return 0  # a view

    def forward(self, x: Array, training: bool = False) -> Array:
        check_batch(self, x, 4)
        out = x.reshape(x.shape[0], -1)
        self._keep(training, out, x.shape)
        return out

    def backward(self, grad_out: Array) -> Array:
        (input_shape,) = self._recall(grad_out)
        return grad_out.reshape(input_shape)


class Linear(_Weighted):
    """A fully connected layer: ``x @ weight.T + bias``. Input (N, in), output (N, out), of the
    weights' dtype; ``rng``: such as ``np.random.default_rng(0)``.

    >>> layer = Linear(9216, 4096, rng=np.random.default_rng(0))
    >>> layer.forward(np.zeros((2, 9216), np.float32)).shape
    (2, 4096)
    """

    kind = "fc"

    def __init__(self, in_features: int, out_features: int, *, rng: np.random.Generator) -> None:
        super().__init__()
        in_features = check_whole_number("in_features", in_features, 1)
        out_features = check_whole_number("out_features", out_features, 1)
        self.in_features, self.out_features = in_features, out_features
        self.parameters = {
            "weight": _he_normal(rng, (out_features, in_features), in_features),
            "bias": np.zeros(out_features, dtype=np.float32),
        }

    def output_shape(self, input_shape: Shape) -> Shape:
        if input_shape != (self.in_features,):
            name = type(self).__name__
            raise ValueError(
                f"this {name} takes ({self.in_features},) features, got {input_shape}."
            )
        return (self.out_features,)

    def macs(self, input_shape: Shape) -> int:
        return self.in_features * self.out_features

    def forward(self, x: Array, training: bool = False) -> Array:
        weight, bias = self.parameters["weight"], self.parameters["bias"]
        self._check_input(x)
        out = self._product(x, weight)
        out += bias
        self._keep(training, out, x)
        return out

    def _check_input(self, x: Array) -> None:
        weight = self.parameters["weight"]
        array_module(x, weight)
        check_batch(self, x, 2)
        self.output_shape(x.shape[1:])
        if x.dtype != weight.dtype:
            raise TypeError(
                f"x is {x.dtype} but weight is {weight.dtype}; use x.astype(np.{weight.dtype})."
            )

    def sums_by(self, product: Callable[[Array, Array], Array], x: Array) -> Array:
        return product(x, self.parameters["weight"].T)

    def _product(self, x: Array, weight: Array) -> Array:
        if suits(x, weight):
            from fastdl_lib.kernels import linear  # Numba takes a while to import

            out = linear.product(x, weight)
            if out is not None:
                return out
        dtype = x.dtype
        x, weight = self._to_sum(x, weight)
        out = array_module(x).empty((len(x), self.out_features), x.dtype)

        def work(features: slice) -> None:
            array_module(x).matmul(x, weight[features].T, out=out[:, features])

        in_parallel(work, self.out_features, least=64, on=x)
        return rounded(out, dtype)

    def _to_sum(self, *arrays: Array) -> tuple[Array, ...]:
        """The arrays of a product: float32 of a small layer in float64, since sums that are rounded
        at their end come out alike, however processes share a batch. (A BLAS's order depends on the
        number of images.) For many weights that costs too much."""
        first, weight_bytes = arrays[0], self.parameters["weight"].nbytes
        if array_module(first) is np and first.dtype == np.float32 and weight_bytes <= CACHE_BYTES:
            return tuple(array.astype(np.float64) for array in arrays)
        return arrays

    def _backward(self, grad_out: Array, need_grad_x: bool) -> Array | None:
        (x,) = self._recall(grad_out)
        weight = self.parameters["weight"]
        grad_x, grad_weight = self._product_backward(grad_out, x, weight, need_grad_x)
        self._set_gradients(weight=grad_weight, bias=grad_out.sum(axis=0, dtype=np.float64))
        return grad_x

    def _product_backward(
        self, grad_out: Array, x: Array, weight: Array, need_grad_x: bool
    ) -> tuple[Array | None, Array]:
        xp, dtype = array_module(x), x.dtype
        grad_out, x, weight = self._to_sum(grad_out, x, weight)
        grad_weight = None
        if suits(x, weight):
            from fastdl_lib.kernels import linear

            grad_weight = linear.gradient_by_weight(grad_out, x, weight)

        def work(features: slice) -> None:
            xp.matmul(grad_out[:, features].T, x, out=grad_weight[features])

        def work_x(features: slice) -> None:
            xp.matmul(grad_out, weight[:, features], out=grad_x[:, features])

        if grad_weight is None:
            grad_weight = xp.empty_like(weight)
            in_parallel(work, self.out_features, least=64, on=x)
        grad_x = xp.empty_like(x) if need_grad_x else None
        if need_grad_x:
            in_parallel(work_x, self.in_features, least=64, on=x)
            grad_x = rounded(grad_x, dtype)
        return grad_x, grad_weight


def seed_of(seed: int, *place: int) -> int:
    """The seed of one among many sources of randomness, such as a layer's in an epoch."""
    sequence = np.random.SeedSequence(int(seed), spawn_key=place)
    return int(sequence.generate_state(1, np.uint64)[0])


class RandomLayer(Layer):
    """A layer that draws, from its seed; for the whole of a batch that processes share."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = check_whole_number("seed", seed, 0)
        self._generators: dict[str, Any] = {}
        self._shared: tuple[slice, int] | None = None

    def reseed(self, seed: int) -> None:
        self.seed, self._generators = seed, {}

    def share(self, here: slice | None, images: int) -> None:
        self._shared = None if here is None else (here, images)

    def _whole(self, x: Array) -> tuple[Any, slice, Shape]:
        """The generator beside ``x``, where x comes in what is drawn, and the shape of that."""
        xp = array_module(x)
        if xp.__name__ not in self._generators:
            self._generators[xp.__name__] = xp.random.default_rng(self.seed)
        here, images = self._shared or (slice(0, len(x)), len(x))
        return self._generators[xp.__name__], here, (images, *x.shape[1:])


class Dropout(RandomLayer):
    """In training, zero each value with probability ``rate`` and scale the rest by 1/(1 - rate).

    Outside training it does nothing. (The book scales at test time instead; the expected values
    of the two differ by the constant factor only.) Any shape, any float dtype; rate in [0, 1).

    >>> Dropout(0.5).forward(np.ones((2, 3), np.float32)).tolist()
    [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """

    def __init__(self, rate: float, *, seed: int = 0) -> None:
        super().__init__(seed)
        check_number("rate", rate, low=0, high=1)
        self.rate = float(rate)  # NumPy's own float64 would widen a float32 batch

    @property
    def makes_values(self) -> bool:
        return bool(self.rate)  # by its factor

    def bytes_moved(self, input_shape: Shape, batch: int = 1, bytes_per_value: float = 4) -> int:
        return 0  # out of training it does nothing

    def forward(self, x: Array, training: bool = False) -> Array:
        check_batch(self, x)
        if not training:
            self._keep(training, x)
            return x
        generator, here, shape = self._whole(x)
        draws = generator.random(shape, dtype=np.float32)[here]
        mask = (draws >= self.rate).astype(wide(x.dtype)) / (1 - self.rate)
        self._keep(training, x, mask)
        return (x * mask).astype(x.dtype, copy=False)

    def backward(self, grad_out: Array) -> Array:
        (mask,) = self._recall(grad_out)
        return (grad_out * mask).astype(grad_out.dtype, copy=False)
