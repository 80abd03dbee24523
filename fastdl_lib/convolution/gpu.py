"""Convolution on the GPU: as one large product by kernels of our own, or by cuDNN.

Signatures and shapes are those of ``convolution``. The patches are laid out channels last, a patch
a row, for one group at a time, because a plain product of two matrices is what cuBLAS does best:
it takes transposed matrices without a copy, TF32 where :func:`fastdl_lib.core.arrays.tf32` allows it,
and adds float16 up in float32. A product of stacks would copy the one and ignore the other.

CuPy compiles the kernels at their first call for a geometry, with all sizes as constants, so that
the divisions which turn an index into a place cost next to nothing, and keeps them on the disk.
"""

import contextlib
import functools
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from fastdl_lib.convolution.im2col import check_conv_shapes, check_grad_out, wide
from fastdl_lib.core.arrays import array_module, gpu_status, tf32_allowed
from fastdl_lib.core.checks import Status
from fastdl_lib.core.threads import blocks

__all__ = [
    "conv2d_cudnn",
    "conv2d_cudnn_backward",
    "conv2d_gpu",
    "conv2d_gpu_backward",
    "cudnn_status",
]

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


class _Plan(NamedTuple):
    """The sizes of one convolution; the kernels have them as constants, under the same names."""

    channels: int
    """Of one group."""
    height: int
    width: int
    filter_h: int
    filter_w: int
    out_h: int
    out_w: int
    stride: int
    padding: int

    @property
    def taps(self) -> int:
        return self.filter_h * self.filter_w

    @property
    def columns(self) -> int:
        """Entries in a row of patches, filled up to a multiple of 8 as tensor cores like it."""
        return -(-self.taps * self.channels // 8) * 8

    def constants(self, dtype: np.dtype, **more: int) -> str:
        """Lines of C for a kernel's head."""
        values = self._asdict() | {"taps": self.taps, "columns": self.columns} | more
        accumulator = "double" if wide(dtype) == np.float64 else "float"
        lines = [f"const int {name} = {value};" for name, value in values.items()]
        return "\n".join([*lines, f"typedef {accumulator} accumulator;"])

    def blocks(self, x: Array) -> Iterator[tuple[slice, slice]]:
        """Cut a batch into (images, rows of their patches) that fit _PATCHES_BYTES.

        Raises:
            ValueError: one image is too large for the kernels' 32-bit indices.
        """
        rows = self.out_h * self.out_w
        largest = max(rows * self.columns, x[0].size)
        if largest >= 2**31:
            raise ValueError(
                f"one image of {x.shape[1:]} makes {largest:,} values, and the kernels count to "
                "2**31: cut the image up, or use algorithm='cudnn'."
            )
        for images in blocks(slice(0, len(x)), max(1, _PATCHES_BYTES // (largest * x.itemsize))):
            yield images, slice(images.start * rows, images.stop * rows)


@functools.cache
def _kernel(xp: ModuleType, name: str, inputs: str, constants: str, code: str) -> Any:
    return xp.ElementwiseKernel(inputs, "T y", constants + code, name)


def _on_gpu(name: str, x: Array) -> ModuleType:
    xp = array_module(x)
    if xp is np:
        raise TypeError(
            f"{name} runs on the GPU only: move x, weight and bias there with to_gpu()."
        )
    return xp


def _patches(plan: _Plan, x: Array, first_channel: int) -> Array:
    """Lay out one group's patches of some images: (N * OH * OW, columns)."""
    xp = array_module(x)
    last = x.transpose(0, 2, 3, 1)
    if last.flags.c_contiguous:
        x, order = last, (0, 3, 1, 2)
    else:
        x, order = xp.ascontiguousarray(x), (0, 1, 2, 3)
    steps = [x.strides[axis] // x.itemsize for axis in order]
    names = ("per_image", "per_channel", "per_row", "per_column")
    constants = plan.constants(x.dtype, **dict(zip(names, steps, strict=True)))
    kernel = _kernel(xp, "fastdl_patches", "raw T x, int32 first_channel", constants, _PATCHES)
    out = xp.empty((len(x) * plan.out_h * plan.out_w, plan.columns), x.dtype)
    return kernel(x, first_channel, out)


def _matrices(plan: _Plan, weight: Array, groups: int) -> Array:
    """(groups, K / groups, columns): a filter a row, in the order of a patch."""
    matrices = weight.transpose(0, 2, 3, 1).reshape(groups, len(weight) // groups, -1)
    if matrices.shape[2] == plan.columns:
        return matrices
    filled = array_module(weight).zeros((*matrices.shape[:2], plan.columns), weight.dtype)
    filled[:, :, : matrices.shape[2]] = matrices
    return filled


def conv2d_gpu(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
) -> Array:
    """Convolve on the GPU: patches by a kernel of our own, one product a group by cuBLAS.

    Shapes as in the head of ``convolution``, float16 too; the result is channels last in memory.

    Raises:
        TypeError, ValueError: as :func:`fastdl_lib.convolution.im2col.check_conv_shapes`; TypeError for
            arrays on the CPU; ValueError for an image beyond 32-bit indices.
        MemoryError: the GPU's memory is full.

    >>> x, w = np.ones((2, 3, 8, 8), np.float32), np.ones((4, 3, 3, 3), np.float32)
    >>> conv2d_gpu(x, w)
    Traceback (most recent call last):
    TypeError: conv2d_gpu runs on the GPU only: move x, weight and bias there with to_gpu().
    """
    shapes = check_conv_shapes(x, weight, bias, stride, padding, groups)
    out_h, out_w, stride, padding, groups = shapes
    xp = _on_gpu("conv2d_gpu", x)
    plan = _Plan(*weight.shape[1:2], *x.shape[2:], *weight.shape[2:], *shapes[:4])
    matrices = _matrices(plan, weight, groups)
    out = xp.empty((len(x), out_h, out_w, len(weight)), x.dtype)
    pixels, filters = out.reshape(-1, len(weight)), len(weight) // groups
    for images, rows in plan.blocks(x):
        for group in range(groups):
            part = slice(group * filters, (group + 1) * filters)
            made = _patches(plan, x[images], group * plan.channels) @ matrices[group].T
            xp.add(made, 0 if bias is None else bias[part], out=pixels[rows, part])
    return out.transpose(0, 3, 1, 2)


def conv2d_gpu_backward(
    grad_out: Array,
    x: Array,
    weight: Array,
    *,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
    need_grad_x: bool = True,
) -> tuple[Array | None, Array, Array]:
    """Return the gradients of :func:`conv2d_gpu` with respect to x, weight and bias.

    Arguments and result as :func:`fastdl_lib.convolution.im2col.conv2d_im2col_backward`. Two products a
    group; a second kernel gathers, for each pixel, from the patches it lies in.

    Raises:
        TypeError, ValueError: as there; TypeError for arrays on the CPU; ValueError for an image
            beyond 32-bit indices.
        MemoryError: the GPU's memory is full.
    """
    shapes = check_conv_shapes(x, weight, None, stride, padding, groups)
    out_h, out_w, stride, padding, groups = shapes
    xp = _on_gpu("conv2d_gpu_backward", x)
    array_module(x, grad_out)
    check_grad_out(grad_out, x, (len(x), len(weight), out_h, out_w))
    plan = _Plan(*weight.shape[1:2], *x.shape[2:], *weight.shape[2:], *shapes[:4])
    channels, filters = plan.channels, len(weight) // groups
    matrices = _matrices(plan, weight, groups)
    pixels = xp.ascontiguousarray(grad_out.transpose(0, 2, 3, 1)).reshape(-1, len(weight))
    # Partial sums of float16 add up in float32.
    grad_matrices = xp.zeros(matrices.shape, wide(x.dtype))
    grad_x = None
    if need_grad_x:
        grad_x = xp.empty((len(x), *x.shape[2:], x.shape[1]), x.dtype)
        gather = _kernel(xp, "fastdl_pixels", "raw T x", plan.constants(x.dtype), _PIXELS)
    for images, rows in plan.blocks(x):
        for group in range(groups):
            # Contiguous at once, or both products would make a copy of their own.
            grads = xp.ascontiguousarray(pixels[rows, group * filters : (group + 1) * filters])
            grad_matrices[group] += grads.T @ _patches(plan, x[images], group * channels)
            if need_grad_x:
                seen = grad_x[images, :, :, group * channels : (group + 1) * channels]
                gather(grads @ matrices[group], seen)
    # As a product too: a sum over so many rows would keep but a few of the GPU's cores busy.
    grad_bias = (xp.ones((1, len(pixels)), x.dtype) @ pixels)[0]
    grad_weight = grad_matrices[:, :, : plan.taps * channels].astype(x.dtype, copy=False)
    grad_weight = grad_weight.reshape(len(weight), *weight.shape[2:], -1).transpose(0, 3, 1, 2)
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
    version = torch.backends.cudnn.version()
    return Status(True, f"cuDNN {version} through PyTorch {torch.__version__}.")


@contextlib.contextmanager
def _torch_for(name: str, x: Array) -> Iterator[tuple[ModuleType, ModuleType]]:
    """CuPy and PyTorch for a block, cuDNN choosing the fastest way, TF32 only if allowed."""
    xp = _on_gpu(name, x)
    status = cudnn_status()
    if not status.available:
        raise RuntimeError(f"algorithm='cudnn' cannot be used here. {status.reason}")
    import torch

    settings = torch.backends.cudnn.flags(
        enabled=True, benchmark=True, deterministic=False, allow_tf32=tf32_allowed()
    )
    try:
        with torch.no_grad(), settings:
            yield xp, torch
    except torch.OutOfMemoryError as error:
        raise MemoryError(str(error)) from None  # as CuPy's own is one


def conv2d_cudnn(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
) -> Array:
    """Convolve with cuDNN, NVIDIA's own library, through PyTorch; no array is copied on the way.

    Shapes as in the head of ``convolution``, float16 too. cuDNN tries its algorithms at the first
    call for a shape and keeps the fastest.

    Raises:
        TypeError, ValueError: as :func:`fastdl_lib.convolution.im2col.check_conv_shapes`; TypeError for
            arrays on the CPU.
        RuntimeError: :func:`cudnn_status` says no.
        MemoryError: the GPU's memory is full.
    """
    _, _, stride, padding, groups = check_conv_shapes(x, weight, bias, stride, padding, groups)
    window = {"stride": stride, "padding": padding, "groups": groups}
    with _torch_for("conv2d_cudnn", x) as (xp, torch):
        given = (x, weight, bias)
        tensors = [None if array is None else torch.from_dlpack(array) for array in given]
        return xp.from_dlpack(torch.nn.functional.conv2d(*tensors, **window))


def conv2d_cudnn_backward(
    grad_out: Array,
    x: Array,
    weight: Array,
    *,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
    need_grad_x: bool = True,
) -> tuple[Array | None, Array, Array]:
    """Return the gradients of :func:`conv2d_cudnn` with respect to x, weight and bias.

    Arguments and result as :func:`fastdl_lib.convolution.im2col.conv2d_im2col_backward`.

    Raises:
        TypeError, ValueError: as there; TypeError for arrays on the CPU.
        RuntimeError: :func:`cudnn_status` says no.
        MemoryError: the GPU's memory is full.
    """
    shapes = check_conv_shapes(x, weight, None, stride, padding, groups)
    out_size, (stride, padding, groups) = shapes[:2], shapes[2:]
    array_module(x, grad_out)
    check_grad_out(grad_out, x, (len(x), len(weight), *out_size))
    with _torch_for("conv2d_cudnn_backward", x) as (xp, torch):
        grads = torch.ops.aten.convolution_backward(
            *(torch.from_dlpack(array) for array in (grad_out, x, weight)),
            [len(weight)],  # the bias's shape
            [stride, stride],
            [padding, padding],
            [1, 1],  # dilation
            False,  # not transposed
            [0, 0],
            groups,
            [need_grad_x, True, True],
        )
        return tuple(None if grad is None else xp.from_dlpack(grad) for grad in grads)
