"""Optimisers' updates in one pass over memory.

For each weight its gradient and what is remembered of it come in once, all that is made of them
stays in registers (16 weights at a time with AVX-512), and what changed goes back. NumPy goes
through the arrays for every operation, in blocks that stay in the cache; its version stands in
:mod:`fastdl_lib.nn.optimizers`, for GPUs and other dtypes too. The operations are the same, in the
same order, and so are the bits.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from fastdl_lib.kernels.compiled import compiled, suits


def fits(*arrays: Any) -> bool:
    """Whether the loops take these: NumPy's, flat, without gaps, all float32 or all float64."""
    dtype, flat = arrays[0].dtype, all(a.ndim == 1 for a in arrays)
    return flat and dtype in (np.float32, np.float64) and suits(*arrays, dtype=dtype)


@functools.cache
def momentum() -> Callable[..., None]:
    """Return ``loop(w, g, v, rate, momentum, decay)``: gradient descent. Constants are of the
    arrays' dtype; without momentum v is not touched."""

    @compiled
    def loop(w, g, v, rate, momentum, decay):
        for i in range(len(w)):
            step = g[i]
            if decay != 0:
                step += decay * w[i]
            if momentum != 0:
                step += momentum * v[i]
                v[i] = step
            w[i] -= rate * step

    return loop


@functools.cache
def adam() -> Callable[..., None]:
    """Return ``loop(w, g, m, s, beta1, rest1, beta2, rest2, rate, square_bias, epsilon)``; rest is
    1 - beta."""

    @compiled
    def loop(w, g, m, s, beta1, rest1, beta2, rest2, rate, square_bias, epsilon):
        for i in range(len(w)):
            m[i] = m[i] * beta1 + rest1 * g[i]
            s[i] = s[i] * beta2 + rest2 * g[i] * g[i]
            w[i] -= rate * m[i] / (np.sqrt(s[i] / square_bias) + epsilon)

    return loop
