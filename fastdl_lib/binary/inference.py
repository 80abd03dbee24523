"""A trained binary network as whole numbers: signs packed to words, and one threshold an output.

Between two products stand batch normalisation and sign: a straight line and a comparison with 0. As
a product of signs is a whole number, the two are one comparison with a whole number, the
*threshold*. :func:`fold` finds it by asking the layers themselves, so that not even their rounding
makes a difference: the answers are the float network's, bit for bit, or :func:`fold` refuses.
"""

import copy
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fastdl_lib.binary.bits import WORD, pack, pack_bits, panels_of, rows_of, unpack, xnor_product
from fastdl_lib.binary.layers import BinaryConv2d, BinaryLinear, PixelBytes, Sign, sign
from fastdl_lib.convolution.geometry import output_size, tap_views
from fastdl_lib.core.arrays import array_module
from fastdl_lib.core.threads import in_flat_blocks, in_parallel
from fastdl_lib.nn.layers import Dropout, Flatten, Layer, MaxPool2d
from fastdl_lib.nn.network import Network
from fastdl_lib.nn.norms import BatchNorm

Array = Any  # numpy.ndarray or cupy.ndarray

FIRST_LAYERS = {
    "planes": "eight bit planes of the pixels, one binary product each",
    "float": "one float32 product of the pixels with the signs",
}
"""How a folded network's first layer computes; both are exact."""

_IMAGES = 128  # at a time
_EXACT = 2**24  # below it every whole number is a float32
_ROUNDING = ("winograd", "cudnn")  # their sums are not whole numbers


class BitLayer(Layer):
    """A product with binary weights and all that follows up to the next sign; made by :func:`fold`.

    It takes images (N, C, H, W) as float32 from 0 to 1, or what another one gives: words of
    bits, (N, H, W, words), the channels of a pixel packed together. It gives such words, or, as
    the last one, logits (N, classes), float32. Its arrays stand in ``buffers``:

    * ``words``: the signs of the weights, a row an output, laid out by
      :func:`~fastdl_lib.binary.bits.panels_of`;
    * ``threshold``: (outputs,) int32; a sum of at least that gives +1,
    * ``falling``: words with a bit for every output where it gives -1 instead (normalisation
      with a negative weight);
    * in the last one, ``factor`` and ``shift`` for its logits, where it has a normalisation.
    """

    gives_words = True

    def __init__(
        self,
        product: BinaryLinear | BinaryConv2d,
        after: dict[type, Layer],
        input_shape: tuple[int, ...],
        takes_pixels: bool,
    ) -> None:
        super().__init__()
        self.kind, self.takes_pixels = product.kind, takes_pixels
        self.pool, self.ends_in_sign = copy.copy(after.get(MaxPool2d)), Sign in after
        signs = sign(product.parameters["weight"])
        self._flat = signs.ndim == 2
        if self._flat:  # a filter as large as the image
            shape = input_shape if len(input_shape) == 3 else (*input_shape, 1, 1)
            signs = signs.reshape(len(signs), *shape)
            self.stride, self.padding, self.padding_value = 1, 0, 0.0
        else:
            self.stride, self.padding = product.stride, product.padding
            self.padding_value = product.padding_value
        allowed = (0.0,) if takes_pixels else (-1.0, 1.0)
        if self.padding and self.padding_value not in allowed:
            raise ValueError(
                f"padding_value must be {' or '.join(map(str, allowed))} in front of a layer that "
                f"takes {'pixels' if takes_pixels else 'signs'}, got {self.padding_value}."
            )
        self.outputs, self.channels = signs.shape[:2]
        self.kernel, self.length = signs.shape[2:], math.prod(signs.shape[1:])
        # Of FIRST_LAYERS, where it takes pixels; eight words that are hardly filled do not pay.
        self.way = "planes" if self.length >= WORD else "float"
        if self.largest >= _EXACT:
            raise ValueError(f"sums reach {self.largest:,}, and float32 is exact below {_EXACT:,}.")
        rows = signs.transpose(0, 2, 3, 1)
        # Pixels are packed a patch at a time, signs a pixel at a time: these come packed so.
        rows = pack(rows.reshape(len(rows), -1) if takes_pixels else rows)
        rows = rows.reshape(self.outputs, -1)
        self.row_words, self.buffers = rows.shape[1], {"words": panels_of(rows)}
        with np.errstate(all="ignore"):
            if norm := after.get(BatchNorm):
                self.buffers |= dict(zip(("factor", "shift"), norm.scale_and_shift(), strict=True))
            xp, most = array_module(rows), self.largest
            ends = self._line(xp.asarray([[-most], [most]]))
        if not xp.isfinite(ends).all():
            raise ValueError(f"normalisation makes NaN or infinity of sums from {-most} to {most}.")
        if self.ends_in_sign:
            self._find_thresholds()

    @property
    def largest(self) -> int:
        """No sum is larger, or below minus that."""
        return self.length * (255 if self.takes_pixels else 1)

    def sums_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of what is summed up for one image, before a pool."""
        if self._flat:
            return (self.outputs,)
        sizes = [
            output_size(size, kernel, self.stride, self.padding)
            for size, kernel in zip(input_shape[1:], self.kernel, strict=True)
        ]
        return (self.outputs, *sizes)

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        shape = self.sums_shape(input_shape)
        shape = shape if self.pool is None else self.pool.output_shape(shape)
        return shape if self.ends_in_sign else (math.prod(shape),)

    def from_store(self, stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Refuses bits that stand for no weight or output (ValueError), since sums would count
        them, and thresholds that no sum reaches."""
        pixels = self.length // self.channels
        row = (self.length,) if self.takes_pixels else (pixels, self.channels)
        rows = pack(np.ones((self.outputs, *row), np.int8)).reshape(self.outputs, -1)
        for name, full in (("words", panels_of(rows)), ("falling", pack(np.ones(self.outputs)))):
            words = stored.get(name, full)
            if (words.dtype, words.shape) == (full.dtype, full.shape) and (words & ~full).any():
                raise ValueError(f"{name} has bits where there is no weight or output.")
        threshold = stored.get("threshold", np.zeros(0, int))
        if threshold.dtype.kind == "i" and (abs(threshold.astype(float)) > self.largest).any():
            raise ValueError(f"threshold is beyond {self.largest}, the largest sum.")
        return stored

    # --- what it costs ----------------------------------------------------------------------

    @property
    def parameter_count(self) -> int:
        """Of bits and numbers: the weights' signs, and a threshold or a line an output."""
        numbers = [a for name, a in self.buffers.items() if name not in ("words", "falling")]
        return self.outputs * self.length + sum(array.size for array in numbers)

    def macs(self, input_shape: tuple[int, ...]) -> int:
        return math.prod(self.sums_shape(input_shape)) * self.length

    def stored_bytes(self, bytes_per_value: float = 4) -> float:
        return sum(array.nbytes for array in self.buffers.values())

    def output_bytes(self, input_shape: tuple[int, ...], bytes_per_value: float = 4) -> float:
        """Logits of so many bytes a value; in front of another layer words, as the weights are."""
        shape = self.output_shape(input_shape)
        return _word_bytes(shape) if self.ends_in_sign else math.prod(shape) * bytes_per_value

    def bytes_moved(
        self, input_shape: tuple[int, ...], batch: int = 1, bytes_per_value: float = 4
    ) -> int:
        image = math.prod(input_shape) * bytes_per_value
        moved = image if self.takes_pixels else _word_bytes(input_shape)
        moved += self.output_bytes(input_shape, bytes_per_value)
        return math.ceil(batch * moved + self.stored_bytes())

    def _line(self, sums: Array) -> Array:
        """What the float layers make of sums (..., outputs) in front of the sign."""
        values = sums.astype(np.float32)
        if "factor" in self.buffers:
            values = values * self.buffers["factor"]
            values += self.buffers["shift"]
        return values

    def _find_thresholds(self) -> None:
        """Find, for all outputs at once, where the sign changes: halve the range until it is one.

        The line rises or falls, and so does its rounding to float32: there is one such place.
        """
        xp = array_module(self.buffers["words"])
        low = xp.full(self.outputs, -self.largest, np.int64)
        high = xp.full(self.outputs, self.largest, np.int64)
        at_low, at_high = self._line(low) >= 0, self._line(high) >= 0
        while (high - low > 1).any():
            middle = (low + high) // 2
            changed = (self._line(middle) >= 0) != at_low
            high, low = xp.where(changed, middle, high), xp.where(changed, low, middle)
        # Where nothing changes, every sum is at least the threshold.
        constant = at_low == at_high
        threshold = xp.where(constant, -self.largest, high).astype(np.int32)
        falling = pack_bits(xp.where(constant, ~at_high, at_low))
        words = self.buffers["words"]
        self.buffers = {"words": words, "threshold": threshold, "falling": falling}

    # --- running ----------------------------------------------------------------------------

    def forward(self, x: Array, training: bool = False) -> Array:
        if training:
            raise ValueError("a folded network does not learn: train the network it was made from.")
        sums = self._pixel_sums(x) if self.takes_pixels else self._bit_sums(x)
        if self.pool is not None:
            sums = self._pooled(sums)
        if not self.ends_in_sign:
            return self._line(sums.reshape(len(sums), -1))
        bits = pack_bits(sums >= self.buffers["threshold"])
        bits ^= self.buffers["falling"]
        return bits

    def _patches(self, x: Array, around: Any) -> tuple[Array, tuple[int, int, int]]:
        """(N, H, W, C) as rows, one for every place of the filter, and the places (N, OH, OW)."""
        xp = array_module(x)
        if self.padding:
            batch, height, width, channels = x.shape
            edge = self.padding
            framed = xp.empty((batch, height + 2 * edge, width + 2 * edge, channels), x.dtype)
            framed[...] = around
            framed[:, edge : edge + height, edge : edge + width] = x
            x = framed
        if x.shape[1:3] == self.kernel:
            return x.reshape(len(x), -1), (len(x), 1, 1)
        views = [
            view.transpose(0, 2, 3, 1)
            for _, _, view in tap_views(x.transpose(0, 3, 1, 2), self.kernel, self.stride)
        ]
        places = views[0].shape[:3]
        return xp.concatenate(views, axis=-1).reshape(math.prod(places), -1), places

    def _pixel_sums(self, x: Array) -> Array:
        xp = array_module(x)
        if x.dtype != np.float32:
            raise TypeError(f"a folded network takes float32, got {x.dtype}.")
        pixels, words = PixelBytes().forward(x).transpose(0, 2, 3, 1), self.buffers["words"]
        if self.way == "float":
            patches, places = self._patches(pixels, 0)
            signs = unpack(rows_of(words, self.row_words), self.length)
            return (patches @ signs.T).astype(np.int32).reshape(*places, self.outputs)
        patches, places = self._patches(pixels.astype(np.uint8), 0)
        planes = xp.stack([patches & (1 << plane) for plane in reversed(range(8))])
        bits = pack_bits(planes != 0).reshape(-1, self.row_words)
        products = xnor_product(bits, words, self.length)
        # A bit b is (value + 1) / 2 of its value -1 or +1; the ones make 255 times the sum of the
        # weights, which a plane of ones gives.
        ones = pack_bits(xp.ones((1, self.length), bool))
        in_flat_blocks(_add_planes, products.reshape(8, -1))
        sums = products[: len(patches)]
        sums += 255 * xnor_product(ones, words, self.length)
        sums >>= 1
        return sums.reshape(*places, self.outputs)

    def _bit_sums(self, x: Array) -> Array:
        if x.ndim == 2:
            x = x[:, None, None]
        ones = array_module(x).ones((1, self.channels), bool)
        patches, places = self._patches(x, pack_bits(ones) if self.padding_value > 0 else 0)
        filled = WORD * patches.shape[1]
        # What fills words up agrees in both and counts +1 each.
        sums = xnor_product(patches, self.buffers["words"], filled)
        sums -= filled - self.length
        return sums.reshape(*places, self.outputs)

    def _pooled(self, sums: Array) -> Array:
        """The largest sum of each window, (N, OH, OW, outputs)."""
        kernel = (self.pool.kernel, self.pool.kernel)
        taps = tap_views(sums.transpose(0, 3, 1, 2), kernel, self.pool.stride)
        largest = functools.reduce(array_module(sums).maximum, (view for _, _, view in taps))
        return largest.transpose(0, 2, 3, 1)


def _add_planes(sums: Array, *planes: Array) -> None:
    """Add up in the first one, which counts most; each next one counts half as much."""
    for plane in planes:
        sums <<= 1
        sums += plane


def _word_bytes(shape: tuple[int, ...]) -> int:
    """Of one image's bits, the channels of a pixel packed together."""
    return -(-shape[0] // WORD) * math.prod(shape[1:]) * WORD // 8


class BinaryNetwork(Network):
    """A folded network: :class:`BitLayer` after :class:`BitLayer`; made by :func:`fold`."""

    def forward(
        self, x: Array, training: bool = False, after: Callable[[str], None] | None = None
    ) -> Array:
        """As every network's. No image's answer depends on the others: each thread takes its own
        through all layers, so many at a time that what is between them stays small."""
        self.check_input(x)
        if training or after is not None or array_module(x) is not np:
            return super().forward(x, training, after)
        out, layers = np.empty((len(x), self.classes), np.float32), super()

        def work(images: slice) -> None:
            out[images] = layers.forward(x[images])

        in_parallel(work, len(x), block=_IMAGES, least=8)
        return out

    @property
    def first_layer(self) -> str:
        """How the first layer computes, a key of :data:`FIRST_LAYERS`; may be set."""
        return next(iter(self.layers.values())).way

    @first_layer.setter
    def first_layer(self, way: str) -> None:
        if way not in FIRST_LAYERS:
            raise ValueError(f"first_layer must be one of {list(FIRST_LAYERS)}, got {way!r}.")
        next(iter(self.layers.values())).way = way

    @property
    def bytes(self) -> int:
        """Of all its constants in memory: words, thresholds, and those of the logits."""
        return sum(array.nbytes for array in self.buffers.values())


def fold(network: Network) -> BinaryNetwork:
    """Turn a trained binary network into words and thresholds, with the same answers exactly.

    Args:
        network: a :class:`~fastdl_lib.binary.layers.PixelBytes` first, then products with binary
            weights, each followed by a pool, a batch normalisation and a Sign in this order; pool
            and normalisation may be missing, and behind the last product there is no sign. Flatten
            may stand anywhere, Dropout is left out. It keeps its weights.

    Raises:
        TypeError: weights or buffers of another dtype than float32.
        ValueError: other layers (of classes of one's own, too) or another order; numbers that are
            not finite, or that normalisation makes so; sums that float32 does not hold exactly, or
            an algorithm that rounds them.

    Source: thresholds for normalisation and sign are those of Umuroglu et al., "FINN: a framework
    for fast, scalable binarized neural network inference", FPGA 2017.

    >>> from fastdl_lib.binary.networks import binary_mlp
    >>> network, images = binary_mlp(hidden=64), np.zeros((2, 1, 28, 28), np.float32)
    >>> folded = fold(network)
    >>> folded.bytes, bool((folded.forward(images) == network.forward(images)).all())
    (8632, True)
    """
    left_out = Dropout, Flatten
    waiting = [(n, layer) for n, layer in network.layers.items() if type(layer) not in left_out]
    if not waiting or type(waiting.pop(0)[1]) is not PixelBytes:
        raise ValueError(
            f"{network.name} must begin with PixelBytes: sums of other values are not exact."
        )
    shape, stages = network.input_shape, []
    while waiting:
        name, product = waiting.pop(0)
        after: dict[type, Layer] = {}
        for kind in (MaxPool2d, BatchNorm, Sign):
            if waiting and type(waiting[0][1]) is kind:
                after[kind] = waiting.pop(0)[1]
        try:
            _check_parts(product, after)
            if Sign not in after and waiting:
                raise ValueError("a Sign must follow, all but the last product.")
            stage = BitLayer(product, after, shape, takes_pixels=not stages)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{network.name}, layer {name}: {error}") from None
        shape = stage.output_shape(shape)
        stages.append((name, stage))
    if not stages or stages[-1][1].ends_in_sign:
        raise ValueError(f"{network.name} must end in a product, with BatchNorm or without.")
    if stages[-1][1].outputs != network.classes:
        raise ValueError(f"{network.name} must end in a product that gives a class one number.")
    return BinaryNetwork(f"{network.name}, folded", stages, network.input_shape)


def _check_parts(product: Layer, after: dict[type, Layer]) -> None:
    """Refuse a product, and what belongs to it, that are not of the kind, or not exact."""
    if type(product) not in (BinaryLinear, BinaryConv2d):
        raise ValueError(
            "fold() takes products with binary weights, each followed by MaxPool2d, BatchNorm and "
            f"Sign in this order; here stands {type(product).__name__}."
        )
    norm = after.get(BatchNorm)
    if norm and norm.features != len(product.parameters["weight"]):
        raise ValueError("a Flatten stands between it and its BatchNorm.")
    if product.algorithm in _ROUNDING:
        raise ValueError(f"{product.algorithm} rounds; set its algorithm to 'auto'.")
    for part in (product, *after.values()):
        for name, array in (part.parameters | part.buffers).items():
            if array.dtype != np.float32:
                raise TypeError(f"fold() takes float32 alone, its {name} is {array.dtype}.")
            if not array_module(array).isfinite(array).all():
                raise ValueError(f"its {name} holds NaN or infinity.")
