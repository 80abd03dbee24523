"""Convolutions of any shapes, and the slow float64 reference that all algorithms are held to."""

import numpy as np
from hypothesis import strategies as st
from scipy import signal


def reference(x, weight, bias=None, *, stride=1, padding=0, groups=1):
    """The convolution by scipy, one plane at a time, in float64."""
    x, weight = x.astype(np.float64), weight.astype(np.float64)
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    filters, group_channels = weight.shape[:2]
    images = []
    for image in x:
        maps = []
        for k in range(filters):
            first = k // (filters // groups) * group_channels
            planes = [
                signal.correlate(image[first + c], weight[k, c], mode="valid")
                for c in range(group_channels)
            ]
            maps.append(sum(planes)[::stride, ::stride] + (0 if bias is None else bias[k]))
        images.append(maps)
    return np.array(images)


@st.composite
def convolutions(draw, dtypes=(np.float32, np.float64)):
    """(x, weight, bias or None, window) of any shapes that fit together."""
    groups = draw(st.integers(1, 3))
    channels = groups * draw(st.integers(1, 2))
    filters = groups * draw(st.integers(1, 3))
    kernel = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    padding = draw(st.integers(0, 3))
    height, width = (draw(st.integers(max(1, size - 2 * padding), 7)) for size in kernel)
    stride = draw(st.integers(1, 8))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dtype = draw(st.sampled_from(dtypes))
    x = rng.standard_normal((draw(st.integers(1, 3)), channels, height, width)).astype(dtype)
    weight = rng.standard_normal((filters, channels // groups, *kernel)).astype(dtype)
    bias = rng.standard_normal(filters).astype(dtype) if draw(st.booleans()) else None
    return x, weight, bias, {"stride": stride, "padding": padding, "groups": groups}
