"""Every way to convolve: one table, and the two doors that check and choose.

Adding an algorithm is a file that holds arithmetic and a row of :data:`ALGORITHMS`: layers,
recordings and tests read the table.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from fastdl_lib.convolution import blocked, gpu, im2col, loops, winograd
from fastdl_lib.convolution.geometry import Geometry
from fastdl_lib.core.arrays import array_module, gpu_status, rounded
from fastdl_lib.core.checks import Status, check_choice

Array = Any  # numpy.ndarray or cupy.ndarray


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """One way to convolve, and what it can do."""

    name: str
    forward: Callable[[Array, Array, Array | None, Geometry], Array]
    """(x, weight, bias, geometry) -> the output."""
    backward: Callable[[Array, Array, Array, Geometry, bool], tuple[Array | None, Array, Array]]
    """(grad_out, x, weight, geometry, need_grad_x) -> gradients by x (or None), weight, bias; the
    last two may be sums in float64, which are to be rounded."""
    devices: tuple[str, ...] = ("cpu",)
    dtypes: tuple[str, ...] = ("float16", "float32", "float64")
    loops: bool = False
    """Whether it goes from pixel to pixel in one thread: to be read, and compared with."""
    fast: bool = False
    """Whether it is one to train with; the others show a step on the way there."""
    channels_last: bool = False
    """Whether its weights and outputs lie in memory with the channels of a pixel side by side."""
    saves: float = 1
    """How many times fewer multiplications than MACs it takes at most."""
    set_unseen: Callable[[Array, Array | None, Array, Geometry], None] | None = None
    """(x, bias, output, geometry): make outputs exact that see nothing but zeros, as training needs
    it; None where they are."""
    status: Callable[[], Status] = lambda: Status(True, "The CPU is always there.")
    """Whether it can be used on this machine."""


_WIDE = ("float32", "float64")
_FAST = {"fast": True, "channels_last": True}
# With 5 x 5 taps and tiles of 8 pixels; smaller taps and tiles save less.
_FEWER = {"saves": (20 / 8) ** 2}
_GPU = {**_FAST, "devices": ("gpu",)}
# Float16 is too coarse for Winograd's transforms.
_WINOGRAD = {**_FAST, **_FEWER, "dtypes": _WIDE, "set_unseen": winograd.set_unseen}
_ROWS = (
    Algorithm("loops", loops.forward, im2col.backward, loops=True),
    Algorithm("compiled", loops.forward_compiled, im2col.backward, dtypes=_WIDE, loops=True),
    Algorithm("im2col", im2col.forward, im2col.backward, devices=("cpu", "gpu")),
    Algorithm("blocked", blocked.forward, blocked.backward, **_FAST),
    Algorithm("winograd", winograd.forward, winograd.backward, **_WINOGRAD),
    Algorithm("gpu", gpu.forward, gpu.backward, **_GPU, status=gpu_status),
    Algorithm(
        "cudnn", gpu.cudnn_forward, gpu.cudnn_backward, **_GPU, **_FEWER, status=gpu.cudnn_status
    ),
)
ALGORITHMS: dict[str, Algorithm] = {row.name: row for row in _ROWS}
"""Every way to convolve, slowest first."""


def choose(name: str, x: Array, geometry: Geometry, training: bool = False) -> Algorithm:
    """The row of :data:`ALGORITHMS` for a name, or for "auto": "gpu" on the GPU, on the CPU
    Winograd's where it saves work (:func:`~fastdl_lib.convolution.winograd.saves_work`), blocked
    elsewhere and for float16.

    Raises: TypeError for one that does not take x's device or dtype; ValueError for another name.
    """
    check_choice("algorithm", name, ["auto", *ALGORITHMS])
    on_cpu = array_module(x) is np
    if name == "auto":
        fast = x.dtype != np.float16 and on_cpu and winograd.saves_work(geometry, training)
        name = "winograd" if fast else "blocked" if on_cpu else "gpu"
    row, device = ALGORITHMS[name], "cpu" if on_cpu else "gpu"
    if device not in row.devices or str(x.dtype) not in row.dtypes:
        fit = (one for one in _ROWS if device in one.devices and str(x.dtype) in one.dtypes)
        others = " or ".join(repr(one.name) for one in fit if not one.loops)
        way = "x.astype(np.float32)" if device in row.devices else f"to_{row.devices[0]}()"
        raise TypeError(
            f"algorithm {name!r} takes {', '.join(row.dtypes)} on the {row.devices[0].upper()}, "
            f"got {x.dtype} on the {device.upper()}: use {others} there, or {way} first."
        )
    return row


def conv2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    algorithm: str = "im2col",
    **window: int,
) -> Array:
    """Convolve (N, C, H, W) with (K, C / groups, FH, FW): (N, K, OH, OW), all of one dtype.

    Args:
        bias: (K,), or None.
        algorithm: a key of :data:`ALGORITHMS`, or "auto" (:func:`choose`).
        window: stride=1 and padding=0 in pixels, the same on both axes, zeros on every side;
            groups=1, into how many parts the channels are cut that do not see each other.

    Raises: TypeError for arrays that do not belong together or that the algorithm does not take,
    ValueError for shapes that do not fit.

    >>> x, w = np.ones((2, 3, 8, 8), np.float32), np.ones((4, 3, 3, 3), np.float32)
    >>> conv2d(x, w, padding=1, algorithm="winograd").shape
    (2, 4, 8, 8)
    """
    geometry = Geometry.of(x, weight, bias, **window)
    row = choose(algorithm, x, geometry)
    out = row.forward(x, weight, bias, geometry)
    if row.set_unseen is not None:
        row.set_unseen(x, bias, out, geometry)
    return out


def conv2d_backward(
    grad_out: Array,
    x: Array,
    weight: Array,
    *,
    algorithm: str = "im2col",
    need_grad_x: bool = True,
    **window: int,
) -> tuple[Array | None, Array, Array]:
    """Return the gradients of :func:`conv2d` by x, weight and bias, in their shapes.

    Args:
        grad_out: the gradient of the loss by the output, (N, K, OH, OW).
        need_grad_x: False for a network's first layer, whose input has no use for a gradient: None
            stands for it.

    >>> x, w = np.ones((2, 3, 8, 8), np.float32), np.ones((4, 3, 3, 3), np.float32)
    >>> [g.shape for g in conv2d_backward(np.ones((2, 4, 6, 6), np.float32), x, w)]
    [(2, 3, 8, 8), (4, 3, 3, 3), (4,)]
    """
    geometry = Geometry.of(x, weight, **window)
    geometry.check_grad_out(grad_out, x)
    row = choose(algorithm, x, geometry)
    grad_x, *sums = row.backward(grad_out, x, weight, geometry, need_grad_x)
    return grad_x, *(rounded(total, x.dtype) for total in sums)
