"""Convolution on the GPU: as one large product by kernels of our own, or by cuDNN.

The patches are laid out channels last, a patch a row, for one group at a time, because a plain
product of two matrices is what cuBLAS does best: it takes transposed matrices without a copy, TF32
where :func:`fastdl_lib.core.arrays.tf32` allows it, and adds float16 up in float32. A product of
stacks would copy the one and ignore the other.

The kernels have all sizes as constants, so that the divisions which turn an index into a place cost
next to nothing.
"""

import contextlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np

from fastdl_lib.convolution.geometry import Geometry
from fastdl_lib.core.arrays import array_module, gpu_kernel, gpu_status, tf32_allowed, wide
from fastdl_lib.core.checks import Status
from fastdl_lib.core.threads import blocks

Array = Any  # cupy.ndarray

_PATCHES_BYTES = 2**29
"""How much memory the patches may take at a time: few launches, and a small GPU has room."""

# One thread an entry: which pixel does it see? The padding, and what fills a row up, is zero.
_PATCHES = """
    unsigned int row = (unsigned int) i / columns, column = (unsigned int) i % columns;
    unsigned int tap = column / channels, channel = first_channel + column % channels;
    int h = (int) (row / out_w % out_h * stride + tap / filter_w) - padding;
    int w = (int) (row % out_w * stride + tap % filter_w) - padding;
    int inside = tap < taps && h >= 0 && h < height && w >= 0 && w < width;
    unsigned int image = row / (out_h * out_w);
    y = inside ? x[image * per_image + channel * per_channel + h * per_row + w * per_column]
               : (T) 0.0f;
"""

# One thread a pixel and channel: add up the entries of all patches it lies in. Each thread writes
# its own pixel, so that no two ever add to the same place, and sums come out the same every time.
_PIXELS = """
    unsigned int channel = (unsigned int) i % channels, pixel = (unsigned int) i / channels;
    int h = (int) (pixel / width % height) + padding, w = (int) (pixel % width) + padding;
    unsigned int image = pixel / (height * width);
    accumulator total = 0;
    for (int p = h % stride; p < filter_h && p <= h; p += stride) {
        int i_out = (h - p) / stride;
        if (i_out >= out_h) continue;
        for (int q = w % stride; q < filter_w && q <= w; q += stride) {
            int j_out = (w - q) / stride;
            if (j_out >= out_w) continue;
            unsigned int row = (image * out_h + i_out) * out_w + j_out;
            total += (accumulator) x[row * columns + (p * filter_w + q) * channels + channel];
        }
    }
    y = (T) total;
"""


def _columns(geometry: Geometry) -> int:
    """Entries in a row of patches, filled up to a multiple of 8 as tensor cores like it."""
    _, channels, filter_h, filter_w = geometry.weight_shape
    return -(-channels * filter_h * filter_w // 8) * 8


def _kernel(
    name: str, inputs: str, code: str, geometry: Geometry, dtype: np.dtype, **more: int
) -> Callable[..., Array]:
    """A kernel that makes T y, with the geometry's sizes as constants."""
    filter_h, filter_w = geometry.kernel
    _, _, height, width = geometry.x_shape
    sizes = {name: getattr(geometry, name) for name in ("stride", "padding", "out_h", "out_w")}
    sizes |= {
        "channels": geometry.group_channels,
        "height": height,
        "width": width,
        "filter_h": filter_h,
        "filter_w": filter_w,
        "taps": filter_h * filter_w,
        "columns": _columns(geometry),
    }
    lines = [f"const int {name} = {value};" for name, value in (sizes | more).items()]
    lines.append(f"typedef {'double' if wide(dtype) == np.float64 else 'float'} accumulator;")
    return gpu_kernel(name, inputs, "T y", "\n".join([*lines, code]))


def _blocks(geometry: Geometry, itemsize: int) -> Iterator[tuple[slice, slice]]:
    """Cut a batch into (images, rows of their patches) that fit _PATCHES_BYTES; ValueError where
    one image is too large for the kernels' 32-bit indices."""
    images, channels, height, width = geometry.x_shape
    rows = geometry.out_h * geometry.out_w
    largest = max(rows * _columns(geometry), channels * height * width)
    if largest >= 2**31:
        raise ValueError(
            f"one image of {geometry.x_shape[1:]} makes {largest:,} values, and the kernels count "
            "to 2**31: cut the image up, or use algorithm='cudnn'."
        )
    for part in blocks(slice(0, images), max(1, _PATCHES_BYTES // (largest * itemsize))):
        yield part, slice(part.start * rows, part.stop * rows)


def _patches(geometry: Geometry, x: Array, group: int) -> Array:
    """Lay out one group's patches of some images: (N * OH * OW, columns)."""
    xp = array_module(x)
    last = x.transpose(0, 2, 3, 1)
    if last.flags.c_contiguous:
        x, order = last, (0, 3, 1, 2)
    else:
        x, order = xp.ascontiguousarray(x), (0, 1, 2, 3)
    steps = [x.strides[axis] // x.itemsize for axis in order]
    names = ("per_image", "per_channel", "per_row", "per_column")
    places = dict(zip(names, steps, strict=True))
    inputs = "raw T x, int32 first_channel"
    kernel = _kernel("fastdl_patches", inputs, _PATCHES, geometry, x.dtype, **places)
    out = xp.empty((len(x) * geometry.out_h * geometry.out_w, _columns(geometry)), x.dtype)
    return kernel(x, group * geometry.group_channels, out)


def _matrices(geometry: Geometry, weight: Array) -> Array:
    """(groups, K / groups, columns): a filter a row, in the order of a patch."""
    matrices = weight.transpose(0, 2, 3, 1)
    matrices = matrices.reshape(geometry.groups, geometry.group_filters, -1)
    if matrices.shape[2] == _columns(geometry):
        return matrices
    filled = array_module(weight).zeros((*matrices.shape[:2], _columns(geometry)), weight.dtype)
    filled[:, :, : matrices.shape[2]] = matrices
    return filled


def forward(x: Array, weight: Array, bias: Array | None, geometry: Geometry) -> Array:
    """Convolve by patches from a kernel of our own and one product a group by cuBLAS; the result
    is channels last in memory.

    Raises: ValueError for an image beyond 32-bit indices, MemoryError where the memory is full.
    """
    xp, filters = array_module(x), geometry.group_filters
    matrices = _matrices(geometry, weight)
    images, channels, out_h, out_w = geometry.out_shape
    out = xp.empty((images, out_h, out_w, channels), x.dtype)
    pixels = out.reshape(-1, channels)
    for these, rows in _blocks(geometry, x.itemsize):
        for group in range(geometry.groups):
            part = slice(group * filters, (group + 1) * filters)
            made = _patches(geometry, x[these], group) @ matrices[group].T
            xp.add(made, 0 if bias is None else bias[part], out=pixels[rows, part])
    return out.transpose(0, 3, 1, 2)


def backward(
    grad_out: Array, x: Array, weight: Array, geometry: Geometry, need_grad_x: bool
) -> tuple[Array | None, Array, Array]:
    """The gradients by x (None unless needed), weight and bias: two products a group; a second
    kernel gathers, for each pixel, from the patches it lies in."""
    xp, channels, filters = array_module(x), geometry.group_channels, geometry.group_filters
    matrices = _matrices(geometry, weight)
    pixels = xp.ascontiguousarray(grad_out.transpose(0, 2, 3, 1)).reshape(-1, len(weight))
    # Partial sums of float16 add up in float32.
    grad_matrices = xp.zeros(matrices.shape, wide(x.dtype))
    grad_x = None
    if need_grad_x:
        grad_x = xp.empty((len(x), *x.shape[2:], x.shape[1]), x.dtype)
        gather = _kernel("fastdl_pixels", "raw T x", _PIXELS, geometry, x.dtype)
    for images, rows in _blocks(geometry, x.itemsize):
        for group in range(geometry.groups):
            # Contiguous at once, or both products would make a copy of their own.
            grads = xp.ascontiguousarray(pixels[rows, group * filters : (group + 1) * filters])
            grad_matrices[group] += grads.T @ _patches(geometry, x[images], group)
            if need_grad_x:
                seen = grad_x[images, :, :, group * channels : (group + 1) * channels]
                gather(grads @ matrices[group], seen)
    # As a product too: a sum over so many rows would keep but a few of the GPU's cores busy.
    grad_bias = (xp.ones((1, len(pixels)), x.dtype) @ pixels)[0]
    entries = weight[0].size
    grad_weight = grad_matrices[:, :, :entries].astype(x.dtype, copy=False)
    grad_weight = grad_weight.reshape(len(weight), *geometry.kernel, -1).transpose(0, 3, 1, 2)
    return None if grad_x is None else grad_x.transpose(0, 3, 1, 2), grad_weight, grad_bias


# --- cuDNN --------------------------------------------------------------------------------------


def cudnn_status() -> Status:
    """Say whether cuDNN can be used here, through PyTorch: CuPy 14 no longer wraps it."""
    if not gpu_status().available:
        return Status(False, gpu_status().reason)
    try:
        import torch
    except ImportError:
        return Status(False, "PyTorch is not installed (pip install torch).")
    if not torch.cuda.is_available():
        return Status(
            False,
            f"PyTorch {torch.__version__} sees no GPU: install a build for your CUDA version, "
            "see pytorch.org.",
        )
    if not torch.backends.cudnn.is_available():
        return Status(False, f"PyTorch {torch.__version__} came without cuDNN.")
    versions = {"torch": str(torch.__version__), "cudnn": str(torch.backends.cudnn.version())}
    name = f"cuDNN {versions['cudnn']}"
    return Status(True, f"{name} through PyTorch {torch.__version__}.", name, versions)


@contextlib.contextmanager
def _torch() -> Iterator[ModuleType]:
    """PyTorch for a block, cuDNN choosing the fastest way, TF32 only if allowed."""
    status = cudnn_status()
    if not status.available:
        raise RuntimeError(f"algorithm='cudnn' cannot be used here. {status.reason}")
    import torch

    settings = torch.backends.cudnn.flags(
        enabled=True, benchmark=True, deterministic=False, allow_tf32=tf32_allowed()
    )
    try:
        with torch.no_grad(), settings:
            yield torch
    except torch.OutOfMemoryError as error:
        raise MemoryError(str(error)) from None  # as CuPy's own is one


def cudnn_forward(x: Array, weight: Array, bias: Array | None, geometry: Geometry) -> Array:
    """Convolve with cuDNN, NVIDIA's own library, through PyTorch; no array is copied on the way.

    cuDNN tries its algorithms at the first call for a shape and keeps the fastest.

    Raises: RuntimeError where :func:`cudnn_status` says no, MemoryError where the memory is full.
    """
    window = {name: getattr(geometry, name) for name in ("stride", "padding", "groups")}
    with _torch() as torch:
        given = (x, weight, bias)
        tensors = [None if array is None else torch.from_dlpack(array) for array in given]
        return array_module(x).from_dlpack(torch.nn.functional.conv2d(*tensors, **window))


def cudnn_backward(
    grad_out: Array, x: Array, weight: Array, geometry: Geometry, need_grad_x: bool
) -> tuple[Array | None, Array, Array]:
    """The gradients by x (None unless needed), weight and bias."""
    with _torch() as torch:
        grads = torch.ops.aten.convolution_backward(
            *(torch.from_dlpack(array) for array in (grad_out, x, weight)),
            [len(weight)],  # the bias's shape
            [geometry.stride] * 2,
            [geometry.padding] * 2,
            [1, 1],  # dilation
            False,  # not transposed
            [0, 0],
            geometry.groups,
            [need_grad_x, True, True],
        )
        from_torch = array_module(x).from_dlpack
        return tuple(None if grad is None else from_torch(grad) for grad in grads)
