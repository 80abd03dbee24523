"""What a convolution's algorithms share: its geometry, checked once at the door.

As everywhere in deep learning, the filter is not flipped: this is cross-correlation. ``x`` is
(N, C, H, W), ``weight`` (K, C / groups, FH, FW), ``bias`` (K,) or None, the output (N, K, OH, OW),
all of one dtype: float16, float32 or float64; float16 adds up in float32.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fastdl_lib.core.arrays import array_module
from fastdl_lib.core.checks import check_whole_number

Array = Any  # numpy.ndarray or cupy.ndarray
Shape = tuple[int, int, int, int]


def check_window(kernel: int, stride: int, padding: int) -> tuple[int, int, int]:
    """Refuse a window that cannot slide; return the three as Python's own whole numbers."""
    return (
        check_whole_number("kernel", kernel, 1),
        check_whole_number("stride", stride, 1),
        check_whole_number("padding", padding, 0),
    )


def output_size(size: int, kernel: int, stride: int = 1, padding: int = 0) -> int:
    """Return how many positions a window has along one axis of ``size`` pixels.

    Raises: TypeError for a size not whole, ValueError for a window larger than the padded input.

    >>> output_size(227, kernel=11, stride=4)  # (227 - 11) / 4 + 1
    55
    """
    size = check_whole_number("size", size, 1)
    kernel, stride, padding = check_window(kernel, stride, padding)
    if kernel > size + 2 * padding:
        raise ValueError(
            f"a window of {kernel} does not fit an input of {size} with padding {padding}: "
            f"use padding >= {-(-(kernel - size) // 2)} or a smaller kernel."
        )
    return (size + 2 * padding - kernel) // stride + 1


def _sizes(name: str, shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(check_whole_number(f"every size of {name}", size, 1) for size in shape)


def places(
    shape: Sequence[int], kernel: tuple[int, int], stride: int, padding: int = 0
) -> tuple[Shape, tuple[int, ...]]:
    """What a batch and a window that slides over it come to, as Python's own whole numbers:
    (N, C, H, W) and (FH, FW, stride, padding, OH, OW).

    Raises: TypeError for what is not whole or no pair, ValueError for what does not fit.
    """
    if len(shape) != 4:
        raise ValueError(f"expected a batch of shape (N, C, H, W), got {tuple(shape)}.")
    try:
        filter_h, filter_w = kernel
    except (TypeError, ValueError):
        raise TypeError(
            f"kernel must be a pair (FH, FW), such as (3, 3); got {kernel!r}."
        ) from None
    shape = _sizes("a batch", shape)
    windows = [check_window(size, stride, padding) for size in (filter_h, filter_w)]
    out_h, out_w = (output_size(s, *window) for s, window in zip(shape[2:], windows, strict=True))
    return shape, (windows[0][0], *windows[1], out_h, out_w)


@dataclasses.dataclass(frozen=True)
class Geometry:
    """The sizes of one convolution, which fit together and are Python's own whole numbers.

    Raises: TypeError for a size not whole, ValueError for shapes that do not fit; says what would.

    >>> Geometry((16, 3, 227, 227), (96, 3, 11, 11), stride=4).out_shape
    (16, 96, 55, 55)
    """

    x_shape: Shape
    """(N, C, H, W)."""
    weight_shape: Shape
    """(K, C / groups, FH, FW)."""
    stride: int = 1
    padding: int = 0
    groups: int = 1
    """The channels are cut into so many parts that do not see each other."""
    out_shape: Shape = dataclasses.field(init=False)
    """(N, K, OH, OW)."""

    def __post_init__(self) -> None:
        x, weight = self.x_shape, self.weight_shape
        if len(x) != 4 or len(weight) != 4:
            raise ValueError(
                "convolution takes x of shape (N, C, H, W) and weight of shape (K, C/groups, FH, "
                f"FW); got {x} and {weight}. For one image use x[None]."
            )
        sizes = {"x_shape": _sizes("x", x), "weight_shape": _sizes("weight", weight)}
        for name, least in (("stride", 1), ("padding", 0), ("groups", 1)):
            sizes[name] = check_whole_number(name, getattr(self, name), least)
        for name, value in sizes.items():
            object.__setattr__(self, name, value)
        x, weight = self.x_shape, self.weight_shape
        if x[1] % self.groups or weight[0] % self.groups:
            raise ValueError(
                f"groups={self.groups} must divide the {x[1]} input channels and the {weight[0]} "
                "filters."
            )
        if weight[1] != x[1] // self.groups:
            raise ValueError(
                f"weight {weight} looks at {weight[1]} channels, but x {x} has {x[1]} in "
                f"{self.groups} group(s), so it should look at {x[1] // self.groups}."
            )
        sizes = (output_size(x[a], weight[a], self.stride, self.padding) for a in (2, 3))
        object.__setattr__(self, "out_shape", (x[0], weight[0], *sizes))

    @classmethod
    def of(cls, x: Array, weight: Array, bias: Array | None = None, **window: int) -> "Geometry":
        """Check everything that a convolution is given; ``window`` is stride, padding and groups.

        Raises: as the class, and TypeError for arrays of two libraries or dtypes, or not of floats.
        """
        array_module(*(array for array in (x, weight, bias) if array is not None))
        if x.dtype not in (np.float16, np.float32, np.float64):
            raise TypeError(
                f"x must be float16, float32 or float64, got {x.dtype}; use x.astype(np.float32)."
            )
        for name, array in (("weight", weight), ("bias", bias)):
            if array is not None and array.dtype != x.dtype:
                raise TypeError(
                    f"x is {x.dtype} but {name} is {array.dtype}; mixing them would silently "
                    f"compute in float64. Use {name}.astype(x.dtype)."
                )
        geometry = cls(x.shape, weight.shape, **window)
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ValueError(f"bias must have the shape ({len(weight)},), got {bias.shape}.")
        return geometry

    def check_grad_out(self, grad_out: Array, x: Array) -> None:
        """Refuse a gradient of another shape or dtype, or of another library than x."""
        array_module(grad_out, x)
        if grad_out.shape != self.out_shape:
            raise ValueError(
                f"grad_out must have the output's shape {self.out_shape}, got {grad_out.shape}."
            )
        if grad_out.dtype != x.dtype:
            raise TypeError(
                f"x is {x.dtype} but grad_out is {grad_out.dtype}; use grad_out.astype(x.dtype)."
            )

    def turned(self, weight: Array) -> "Geometry | None":
        """The convolution that makes the gradient by x of that by the output; None where none does:
        for a stride, where the filter is not reached by its padding, or where a weight is no finite
        number, which times the zeros around would be NaN."""
        padding = {side - 1 - self.padding for side in self.kernel}
        if self.stride > 1 or len(padding) > 1 or min(padding) < 0 or not np.isfinite(weight).all():
            return None
        weight_shape = self.x_shape[1], self.group_filters, *self.kernel
        return Geometry(self.out_shape, weight_shape, padding=padding.pop(), groups=self.groups)

    def turn(self, weight: Array) -> Array:
        """The weight of :meth:`turned`: channels and filters change places, and each filter stands
        on its head."""
        shape = self.groups, self.group_filters, *self.weight_shape[1:]
        swapped = weight.reshape(shape).swapaxes(1, 2)[..., ::-1, ::-1]
        return swapped.reshape(self.x_shape[1], self.group_filters, *self.kernel)

    @property
    def group_filters(self) -> int:
        return self.weight_shape[0] // self.groups

    @property
    def group_channels(self) -> int:
        return self.weight_shape[1]

    @property
    def kernel(self) -> tuple[int, int]:
        """(FH, FW)."""
        return self.weight_shape[2:]

    @property
    def out_h(self) -> int:
        return self.out_shape[2]

    @property
    def out_w(self) -> int:
        return self.out_shape[3]


def tap_views(x: Array, kernel: tuple[int, int], stride: int) -> Iterator[tuple[int, int, Array]]:
    """For each place (p, q) of a window, yield p, q and what that place sees as the window slides.

    x (N, C, H, W) is padded already; a view (N, C, OH, OW) shares its memory, so that writing to it
    writes to x.

    >>> x = np.arange(16).reshape(1, 1, 4, 4)
    >>> [view[0, 0].tolist() for _, _, view in tap_views(x, (1, 2), 2)]
    [[[0, 2], [8, 10]], [[1, 3], [9, 11]]]
    """
    _, (filter_h, filter_w, stride, _, out_h, out_w) = places(x.shape, kernel, stride)
    height, width = stride * (out_h - 1) + 1, stride * (out_w - 1) + 1
    return (
        (p, q, x[:, :, p : p + height : stride, q : q + width : stride])
        for p, q in np.ndindex(filter_h, filter_w)
    )


def channels_last(shape: Shape, dtype: Any) -> np.ndarray:
    """Make an empty array of shape (N, C, H, W) whose memory runs over N, H, W, C: the channels of
    a pixel lie side by side, so that a copy of a patch moves long runs.

    >>> x = channels_last((2, 96, 55, 55), np.float32)
    >>> x.shape, [stride // x.itemsize for stride in x.strides]
    ((2, 96, 55, 55), [290400, 1, 5280, 96])
    """
    batch, channels, height, width = shape
    return np.empty((batch, height, width, channels), dtype).transpose(0, 3, 1, 2)


def padded_channels_last(x: np.ndarray, padding: int, height: int, width: int) -> np.ndarray:
    """Copy x (N, C, H, W) into the middle of zeros: (N, height, width, C), contiguous.

    What does not fit below and on the right is cut off: no window reaches it.
    """
    out = np.zeros((x.shape[0], height, width, x.shape[1]), x.dtype)
    inside = out[:, padding : padding + x.shape[2], padding : padding + x.shape[3]]
    inside[...] = x.transpose(0, 2, 3, 1)[:, : inside.shape[1], : inside.shape[2]]
    return out
