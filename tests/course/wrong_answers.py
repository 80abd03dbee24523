"""The bank of wrong answers: what learners plausibly get wrong in each exercise.

Each exercise of the notebooks needs at least four, each wrong in its own way: an off by one, the
wrong axis, a forgotten bias or padding, a unit, a float64 that slips in. `test_wrong_answers.py`
proves that the graders see through every one of them.

To add one: the key is the `grade_id` of the exercise's *solution* cell in the notebook's nbgrader
metadata; the value maps a short name of the mistake to the full source of that cell as the learner
would have written it. It must run by itself, and at least one test of the exercise must fail on it
with an AssertionError whose message helps.

    WRONG_ANSWERS = {
        "conv_output_size": {
            "forgets the plus one": '''
    def conv_output_size(size, kernel, stride=1, padding=0):
        return (size + 2 * padding - kernel) // stride
    ''',
        },
    }
"""

WRONG_ANSWERS: dict[str, dict[str, str]] = {
    "product_intensity": {
        "counts a MAC as one operation": """
def product_intensity(m, k, n, itemsize):
    return m * k * n / (itemsize * (m * k + k * n + m * n))
""",
        "forgets to write the result": """
def product_intensity(m, k, n, itemsize):
    return 2 * m * k * n / (itemsize * (m * k + k * n))
""",
        "always float32": """
def product_intensity(m, k, n, itemsize):
    return 2 * m * k * n / (4 * (m * k + k * n + m * n))
""",
        "takes every matrix for square": """
def product_intensity(m, k, n, itemsize):
    return 2 * m**3 / (itemsize * 3 * m**2)
""",
        "bytes per FLOP": """
def product_intensity(m, k, n, itemsize):
    return itemsize * (m * k + k * n + m * n) / (2 * m * k * n)
""",
    },
    "conv_macs": {
        "forgets the batch": """
def conv_macs(x_shape, weight_shape, stride=(1, 1), padding=(0, 0), dilation=(1, 1)):
    positions = 1
    for axis in (0, 1):
        span = dilation[axis] * (weight_shape[2 + axis] - 1) + 1
        positions *= (x_shape[2 + axis] + 2 * padding[axis] - span) // stride[axis] + 1
    return positions * weight_shape[0] * weight_shape[1] * weight_shape[2] * weight_shape[3]
""",
        "pads one side only": """
def conv_macs(x_shape, weight_shape, stride=(1, 1), padding=(0, 0), dilation=(1, 1)):
    macs = x_shape[0]
    for axis in (0, 1):
        span = dilation[axis] * (weight_shape[2 + axis] - 1) + 1
        macs *= (x_shape[2 + axis] + padding[axis] - span) // stride[axis] + 1
    return macs * weight_shape[0] * weight_shape[1] * weight_shape[2] * weight_shape[3]
""",
        "ignores groups": """
def conv_macs(x_shape, weight_shape, stride=(1, 1), padding=(0, 0), dilation=(1, 1)):
    macs = x_shape[0]
    for axis in (0, 1):
        span = dilation[axis] * (weight_shape[2 + axis] - 1) + 1
        macs *= (x_shape[2 + axis] + 2 * padding[axis] - span) // stride[axis] + 1
    return macs * weight_shape[0] * x_shape[1] * weight_shape[2] * weight_shape[3]
""",
        "ignores dilation": """
def conv_macs(x_shape, weight_shape, stride=(1, 1), padding=(0, 0), dilation=(1, 1)):
    macs = x_shape[0]
    for axis in (0, 1):
        free = x_shape[2 + axis] + 2 * padding[axis] - weight_shape[2 + axis]
        macs *= free // stride[axis] + 1
    return macs * weight_shape[0] * weight_shape[1] * weight_shape[2] * weight_shape[3]
""",
        "swaps vertical and horizontal": """
def conv_macs(x_shape, weight_shape, stride=(1, 1), padding=(0, 0), dilation=(1, 1)):
    macs = x_shape[0]
    for axis in (0, 1):
        span = dilation[1 - axis] * (weight_shape[2 + axis] - 1) + 1
        macs *= (x_shape[2 + axis] + 2 * padding[1 - axis] - span) // stride[1 - axis] + 1
    return macs * weight_shape[0] * weight_shape[1] * weight_shape[2] * weight_shape[3]
""",
        "true division": """
def conv_macs(x_shape, weight_shape, stride=(1, 1), padding=(0, 0), dilation=(1, 1)):
    macs = x_shape[0]
    for axis in (0, 1):
        span = dilation[axis] * (weight_shape[2 + axis] - 1) + 1
        macs *= (x_shape[2 + axis] + 2 * padding[axis] - span) / stride[axis] + 1
    return macs * weight_shape[0] * weight_shape[1] * weight_shape[2] * weight_shape[3]
""",
        "forgets the first position": """
def conv_macs(x_shape, weight_shape, stride=(1, 1), padding=(0, 0), dilation=(1, 1)):
    macs = x_shape[0]
    for axis in (0, 1):
        span = dilation[axis] * (weight_shape[2 + axis] - 1) + 1
        macs *= (x_shape[2 + axis] + 2 * padding[axis] - span) // stride[axis]
    return macs * weight_shape[0] * weight_shape[1] * weight_shape[2] * weight_shape[3]
""",
    },
    "fair_time": {
        "counts the warm-up": """
def fair_time(function, clock, warmup=1, repeats=5):
    times = []
    for _ in range(warmup + repeats):
        start = clock()
        function()
        times.append(clock() - start)
    return statistics.median(times), min(times), max(times)
""",
        "no warm-up": """
def fair_time(function, clock, warmup=1, repeats=5):
    times = []
    for _ in range(repeats):
        start = clock()
        function()
        times.append(clock() - start)
    return statistics.median(times), min(times), max(times)
""",
        "mean instead of median": """
def fair_time(function, clock, warmup=1, repeats=5):
    for _ in range(warmup):
        function()
    times = []
    for _ in range(repeats):
        start = clock()
        function()
        times.append(clock() - start)
    return statistics.mean(times), min(times), max(times)
""",
        "one clock around the loop": """
def fair_time(function, clock, warmup=1, repeats=5):
    for _ in range(warmup):
        function()
    start = clock()
    for _ in range(repeats):
        function()
    each = (clock() - start) / repeats
    return each, each, each
""",
        "the clock keeps running": """
def fair_time(function, clock, warmup=1, repeats=5):
    for _ in range(warmup):
        function()
    times = []
    start = clock()
    for _ in range(repeats):
        function()
        times.append(clock() - start)
    return statistics.median(times), min(times), max(times)
""",
        "upper of the two middle times": """
def fair_time(function, clock, warmup=1, repeats=5):
    for _ in range(warmup):
        function()
    times = []
    for _ in range(repeats):
        start = clock()
        function()
        times.append(clock() - start)
    times.sort()
    return times[len(times) // 2], times[0], times[-1]
""",
    },
    "after_speedup": {
        "shares of the old total": """
def after_speedup(times_ms, speedups):
    new_ms = {kind: ms / speedups.get(kind, 1) for kind, ms in times_ms.items()}
    before = sum(times_ms.values())
    return before / sum(new_ms.values()), {k: 100 * ms / before for k, ms in new_ms.items()}
""",
        "adds the speed-ups up": """
def after_speedup(times_ms, speedups):
    before = sum(times_ms.values())
    new_ms = {kind: ms / speedups.get(kind, 1) for kind, ms in times_ms.items()}
    after = sum(new_ms.values())
    total = sum(speedups.get(kind, 1) * ms / before for kind, ms in times_ms.items())
    return total, {kind: 100 * ms / after for kind, ms in new_ms.items()}
""",
        "takes times for percentages": """
def after_speedup(times_ms, speedups):
    new_ms = {kind: ms / speedups.get(kind, 1) for kind, ms in times_ms.items()}
    after = sum(new_ms.values())
    return 100 / after, {kind: 100 * ms / after for kind, ms in new_ms.items()}
""",
        "fractions instead of percent": """
def after_speedup(times_ms, speedups):
    new_ms = {kind: ms / speedups.get(kind, 1) for kind, ms in times_ms.items()}
    after = sum(new_ms.values())
    return sum(times_ms.values()) / after, {kind: ms / after for kind, ms in new_ms.items()}
""",
        "forgets the kinds that stay": """
def after_speedup(times_ms, speedups):
    new_ms = {kind: times_ms[kind] / factor for kind, factor in speedups.items()}
    after = sum(new_ms.values()) or 1e-9
    return sum(times_ms.values()) / after, {kind: 100 * ms / after for kind, ms in new_ms.items()}
""",
    },
    "smallest_batch": {
        "rounds down": """
def smallest_batch(inputs, outputs, ridge):
    gain = 2 * inputs * outputs - 4 * ridge * (inputs + outputs)
    if gain <= 0:
        return None
    return max(1, int(4 * ridge * (inputs * outputs + outputs) / gain))
""",
        "never gives up": """
def smallest_batch(inputs, outputs, ridge):
    for batch in range(1, 100_000):
        moved = 4 * (batch * (inputs + outputs) + inputs * outputs + outputs)
        if 2 * batch * inputs * outputs / moved >= ridge:
            return batch
    return batch
""",
        "only the weights move": """
def smallest_batch(inputs, outputs, ridge):
    if 2 * inputs * outputs <= 4 * ridge * (inputs + outputs):
        return None
    batch = 1
    while 2 * batch * inputs * outputs < 4 * ridge * (inputs * outputs + outputs):
        batch += 1
    return batch
""",
        "one operation a MAC": """
def smallest_batch(inputs, outputs, ridge):
    if inputs * outputs <= 4 * ridge * (inputs + outputs):
        return None
    batch = 1
    while batch * inputs * outputs < 4 * ridge * (
        batch * (inputs + outputs) + inputs * outputs + outputs
    ):
        batch += 1
    return batch
""",
        "always finds a batch": """
def smallest_batch(inputs, outputs, ridge):
    gain = abs(2 * inputs * outputs - 4 * ridge * (inputs + outputs))
    return max(1, -int(-4 * ridge * (inputs * outputs + outputs) // gain))
""",
        "weights read for every image": """
def smallest_batch(inputs, outputs, ridge):
    moved = 4 * (inputs + outputs + inputs * outputs + outputs)
    return 1 if 2 * inputs * outputs / moved >= ridge else None
""",
        "numbers of one byte": """
def smallest_batch(inputs, outputs, ridge):
    if 2 * inputs * outputs <= ridge * (inputs + outputs):
        return None
    batch = 1
    while 2 * batch * inputs * outputs < ridge * (
        batch * (inputs + outputs) + inputs * outputs + outputs
    ):
        batch += 1
    return batch
""",
    },
    "window_positions": {
        "forgets the first position": """
def window_positions(size, kernel, stride=1, padding=(0, 0), dilation=1):
    length = padding[0] + size + padding[1]
    span = dilation * (kernel - 1) + 1
    if span > length:
        return 0, length
    positions = (length - span) // stride
    return positions, length - (positions - 1) * stride - span
""",
        "ignores dilation": """
def window_positions(size, kernel, stride=1, padding=(0, 0), dilation=1):
    length = padding[0] + size + padding[1]
    if kernel > length:
        return 0, length
    positions = (length - kernel) // stride + 1
    return positions, length - (positions - 1) * stride - kernel
""",
        "takes the padding for equal on both sides": """
def window_positions(size, kernel, stride=1, padding=(0, 0), dilation=1):
    length = size + 2 * padding[0]
    span = dilation * (kernel - 1) + 1
    if span > length:
        return 0, length
    positions = (length - span) // stride + 1
    return positions, length - (positions - 1) * stride - span
""",
        "rounds up": """
def window_positions(size, kernel, stride=1, padding=(0, 0), dilation=1):
    length = padding[0] + size + padding[1]
    span = dilation * (kernel - 1) + 1
    if span > length:
        return 0, length
    positions = -((span - length) // stride) + 1
    return positions, max(0, length - (positions - 1) * stride - span)
""",
        "counts unused pixels by the remainder of the length": """
def window_positions(size, kernel, stride=1, padding=(0, 0), dilation=1):
    length = padding[0] + size + padding[1]
    span = dilation * (kernel - 1) + 1
    if span > length:
        return 0, length
    return (length - span) // stride + 1, length % stride
""",
        "a window that does not fit": """
def window_positions(size, kernel, stride=1, padding=(0, 0), dilation=1):
    length = padding[0] + size + padding[1]
    span = dilation * (kernel - 1) + 1
    positions = (length - span) // stride + 1
    return positions, length - (positions - 1) * stride - span
""",
        "one tap too many in the span": """
def window_positions(size, kernel, stride=1, padding=(0, 0), dilation=1):
    length = padding[0] + size + padding[1]
    span = dilation * kernel
    if span > length:
        return 0, length
    positions = (length - span) // stride + 1
    return positions, length - (positions - 1) * stride - span
""",
    },
    "largest_batch": {
        "always float32": """
def largest_batch(image_shape, weight_shape, stride, padding, itemsize, free_bytes):
    channels, height, width = image_shape
    filters, _, filter_h, filter_w = weight_shape
    out_h = (height + 2 * padding - filter_h) // stride + 1
    out_w = (width + 2 * padding - filter_w) // stride + 1
    patches = channels * filter_h * filter_w * out_h * out_w
    padded = channels * (height + 2 * padding) * (width + 2 * padding) if padding else 0
    return free_bytes // (4 * (patches + max(padded, filters * out_h * out_w)))
""",
        "the patches alone": """
def largest_batch(image_shape, weight_shape, stride, padding, itemsize, free_bytes):
    channels, height, width = image_shape
    _, _, filter_h, filter_w = weight_shape
    out_h = (height + 2 * padding - filter_h) // stride + 1
    out_w = (width + 2 * padding - filter_w) // stride + 1
    return free_bytes // (itemsize * channels * filter_h * filter_w * out_h * out_w)
""",
        "padded input and output at a time": """
def largest_batch(image_shape, weight_shape, stride, padding, itemsize, free_bytes):
    channels, height, width = image_shape
    filters, _, filter_h, filter_w = weight_shape
    out_h = (height + 2 * padding - filter_h) // stride + 1
    out_w = (width + 2 * padding - filter_w) // stride + 1
    patches = channels * filter_h * filter_w * out_h * out_w
    padded = channels * (height + 2 * padding) * (width + 2 * padding) if padding else 0
    return free_bytes // (itemsize * (patches + padded + filters * out_h * out_w))
""",
        "the channels of one group": """
def largest_batch(image_shape, weight_shape, stride, padding, itemsize, free_bytes):
    channels, height, width = image_shape
    filters, group_channels, filter_h, filter_w = weight_shape
    out_h = (height + 2 * padding - filter_h) // stride + 1
    out_w = (width + 2 * padding - filter_w) // stride + 1
    patches = group_channels * filter_h * filter_w * out_h * out_w
    padded = channels * (height + 2 * padding) * (width + 2 * padding) if padding else 0
    return free_bytes // (itemsize * (patches + max(padded, filters * out_h * out_w)))
""",
        "never none": """
def largest_batch(image_shape, weight_shape, stride, padding, itemsize, free_bytes):
    channels, height, width = image_shape
    filters, _, filter_h, filter_w = weight_shape
    out_h = (height + 2 * padding - filter_h) // stride + 1
    out_w = (width + 2 * padding - filter_w) // stride + 1
    patches = channels * filter_h * filter_w * out_h * out_w
    padded = channels * (height + 2 * padding) * (width + 2 * padding) if padding else 0
    image_bytes = itemsize * (patches + max(padded, filters * out_h * out_w))
    return max(1, free_bytes // image_bytes)
""",
        "rounds to the nearest": """
def largest_batch(image_shape, weight_shape, stride, padding, itemsize, free_bytes):
    channels, height, width = image_shape
    filters, _, filter_h, filter_w = weight_shape
    out_h = (height + 2 * padding - filter_h) // stride + 1
    out_w = (width + 2 * padding - filter_w) // stride + 1
    patches = channels * filter_h * filter_w * out_h * out_w
    padded = channels * (height + 2 * padding) * (width + 2 * padding) if padding else 0
    image_bytes = itemsize * (patches + max(padded, filters * out_h * out_w))
    return round(free_bytes / image_bytes)
""",
        "ignores the stride": """
def largest_batch(image_shape, weight_shape, stride, padding, itemsize, free_bytes):
    channels, height, width = image_shape
    filters, _, filter_h, filter_w = weight_shape
    out_h = height + 2 * padding - filter_h + 1
    out_w = width + 2 * padding - filter_w + 1
    patches = channels * filter_h * filter_w * out_h * out_w
    padded = channels * (height + 2 * padding) * (width + 2 * padding) if padding else 0
    return free_bytes // (itemsize * (patches + max(padded, filters * out_h * out_w)))
""",
    },
    "im2col_rows": {
        "a float64 slips in": """
def im2col_rows(x, kernel, stride=(1, 1), dilation=(1, 1)):
    batch, channels = x.shape[:2]
    spans = [dilation[i] * (kernel[i] - 1) + 1 for i in (0, 1)]
    out_h, out_w = ((x.shape[2 + i] - spans[i]) // stride[i] + 1 for i in (0, 1))
    rows = np.zeros((batch, out_h, out_w, *kernel, channels))
    for p in range(kernel[0]):
        for q in range(kernel[1]):
            seen = x[:, :, p * dilation[0] :: stride[0], q * dilation[1] :: stride[1]]
            rows[:, :, :, p, q] = seen[:, :, :out_h, :out_w].transpose(0, 2, 3, 1)
    return rows.reshape(batch * out_h * out_w, -1)
""",
        "channels outermost, as in the library": """
def im2col_rows(x, kernel, stride=(1, 1), dilation=(1, 1)):
    batch, channels = x.shape[:2]
    spans = [dilation[i] * (kernel[i] - 1) + 1 for i in (0, 1)]
    out_h, out_w = ((x.shape[2 + i] - spans[i]) // stride[i] + 1 for i in (0, 1))
    rows = np.empty((batch, out_h, out_w, channels, *kernel), x.dtype)
    for p in range(kernel[0]):
        for q in range(kernel[1]):
            seen = x[:, :, p * dilation[0] :: stride[0], q * dilation[1] :: stride[1]]
            rows[..., p, q] = seen[:, :, :out_h, :out_w].transpose(0, 2, 3, 1)
    return rows.reshape(batch * out_h * out_w, -1)
""",
        "patches as columns": """
def im2col_rows(x, kernel, stride=(1, 1), dilation=(1, 1)):
    batch, channels = x.shape[:2]
    spans = [dilation[i] * (kernel[i] - 1) + 1 for i in (0, 1)]
    out_h, out_w = ((x.shape[2 + i] - spans[i]) // stride[i] + 1 for i in (0, 1))
    rows = np.empty((batch, out_h, out_w, *kernel, channels), x.dtype)
    for p in range(kernel[0]):
        for q in range(kernel[1]):
            seen = x[:, :, p * dilation[0] :: stride[0], q * dilation[1] :: stride[1]]
            rows[:, :, :, p, q] = seen[:, :, :out_h, :out_w].transpose(0, 2, 3, 1)
    return rows.reshape(batch * out_h * out_w, -1).T
""",
        "ignores dilation": """
def im2col_rows(x, kernel, stride=(1, 1), dilation=(1, 1)):
    batch, channels = x.shape[:2]
    out_h, out_w = ((x.shape[2 + i] - kernel[i]) // stride[i] + 1 for i in (0, 1))
    rows = np.empty((batch, out_h, out_w, *kernel, channels), x.dtype)
    for p in range(kernel[0]):
        for q in range(kernel[1]):
            seen = x[:, :, p :: stride[0], q :: stride[1]]
            rows[:, :, :, p, q] = seen[:, :, :out_h, :out_w].transpose(0, 2, 3, 1)
    return rows.reshape(batch * out_h * out_w, -1)
""",
        "strides of the two axes swapped": """
def im2col_rows(x, kernel, stride=(1, 1), dilation=(1, 1)):
    batch, channels = x.shape[:2]
    stride = stride[::-1]
    spans = [dilation[i] * (kernel[i] - 1) + 1 for i in (0, 1)]
    out_h, out_w = ((x.shape[2 + i] - spans[i]) // stride[i] + 1 for i in (0, 1))
    rows = np.empty((batch, out_h, out_w, *kernel, channels), x.dtype)
    for p in range(kernel[0]):
        for q in range(kernel[1]):
            seen = x[:, :, p * dilation[0] :: stride[0], q * dilation[1] :: stride[1]]
            rows[:, :, :, p, q] = seen[:, :, :out_h, :out_w].transpose(0, 2, 3, 1)
    return rows.reshape(batch * out_h * out_w, -1)
""",
        "window columns before window rows": """
def im2col_rows(x, kernel, stride=(1, 1), dilation=(1, 1)):
    batch, channels = x.shape[:2]
    spans = [dilation[i] * (kernel[i] - 1) + 1 for i in (0, 1)]
    out_h, out_w = ((x.shape[2 + i] - spans[i]) // stride[i] + 1 for i in (0, 1))
    rows = np.empty((batch, out_h, out_w, *kernel[::-1], channels), x.dtype)
    for p in range(kernel[0]):
        for q in range(kernel[1]):
            seen = x[:, :, p * dilation[0] :: stride[0], q * dilation[1] :: stride[1]]
            rows[:, :, :, q, p] = seen[:, :, :out_h, :out_w].transpose(0, 2, 3, 1)
    return rows.reshape(batch * out_h * out_w, -1)
""",
        "the first image only": """
def im2col_rows(x, kernel, stride=(1, 1), dilation=(1, 1)):
    batch, channels = x.shape[:2]
    spans = [dilation[i] * (kernel[i] - 1) + 1 for i in (0, 1)]
    out_h, out_w = ((x.shape[2 + i] - spans[i]) // stride[i] + 1 for i in (0, 1))
    rows = np.empty((batch, out_h, out_w, *kernel, channels), x.dtype)
    for p in range(kernel[0]):
        for q in range(kernel[1]):
            seen = x[:1, :, p * dilation[0] :: stride[0], q * dilation[1] :: stride[1]]
            rows[:, :, :, p, q] = seen[:, :, :out_h, :out_w].transpose(0, 2, 3, 1)
    return rows.reshape(batch * out_h * out_w, -1)
""",
    },
    "rows_to_image": {
        "overwrites instead of adding": """
def rows_to_image(rows, x_shape, kernel, stride=(1, 1), dilation=(1, 1)):
    batch, channels = x_shape[:2]
    spans = [dilation[i] * (kernel[i] - 1) + 1 for i in (0, 1)]
    out_h, out_w = ((x_shape[2 + i] - spans[i]) // stride[i] + 1 for i in (0, 1))
    rows = rows.reshape(batch, out_h, out_w, *kernel, channels)
    image = np.zeros(x_shape, rows.dtype)
    for p in range(kernel[0]):
        for q in range(kernel[1]):
            to = image[:, :, p * dilation[0] :: stride[0], q * dilation[1] :: stride[1]]
            to[:, :, :out_h, :out_w] = rows[:, :, :, p, q].transpose(0, 3, 1, 2)
    return image
""",
        "a float64 slips in": """
def rows_to_image(rows, x_shape, kernel, stride=(1, 1), dilation=(1, 1)):
    batch, channels = x_shape[:2]
    spans = [dilation[i] * (kernel[i] - 1) + 1 for i in (0, 1)]
    out_h, out_w = ((x_shape[2 + i] - spans[i]) // stride[i] + 1 for i in (0, 1))
    rows = rows.reshape(batch, out_h, out_w, *kernel, channels)
    image = np.zeros(x_shape)
    for p in range(kernel[0]):
        for q in range(kernel[1]):
            to = image[:, :, p * dilation[0] :: stride[0], q * dilation[1] :: stride[1]]
            to[:, :, :out_h, :out_w] += rows[:, :, :, p, q].transpose(0, 3, 1, 2)
    return image
""",
        "averages what flows back": """
def rows_to_image(rows, x_shape, kernel, stride=(1, 1), dilation=(1, 1)):
    batch, channels = x_shape[:2]
    spans = [dilation[i] * (kernel[i] - 1) + 1 for i in (0, 1)]
    out_h, out_w = ((x_shape[2 + i] - spans[i]) // stride[i] + 1 for i in (0, 1))
    rows = rows.reshape(batch, out_h, out_w, *kernel, channels)
    image, times = np.zeros(x_shape, rows.dtype), np.zeros(x_shape, rows.dtype)
    for p in range(kernel[0]):
        for q in range(kernel[1]):
            where = np.s_[:, :, p * dilation[0] :: stride[0], q * dilation[1] :: stride[1]]
            image[where][:, :, :out_h, :out_w] += rows[:, :, :, p, q].transpose(0, 3, 1, 2)
            times[where][:, :, :out_h, :out_w] += 1
    return image / np.maximum(times, 1)
""",
        "ignores dilation": """
def rows_to_image(rows, x_shape, kernel, stride=(1, 1), dilation=(1, 1)):
    batch, channels = x_shape[:2]
    spans = [dilation[i] * (kernel[i] - 1) + 1 for i in (0, 1)]
    out_h, out_w = ((x_shape[2 + i] - spans[i]) // stride[i] + 1 for i in (0, 1))
    rows = rows.reshape(batch, out_h, out_w, *kernel, channels)
    image = np.zeros(x_shape, rows.dtype)
    for p in range(kernel[0]):
        for q in range(kernel[1]):
            to = image[:, :, p :: stride[0], q :: stride[1]]
            to[:, :, :out_h, :out_w] += rows[:, :, :, p, q].transpose(0, 3, 1, 2)
    return image
""",
        "channels outermost": """
def rows_to_image(rows, x_shape, kernel, stride=(1, 1), dilation=(1, 1)):
    batch, channels = x_shape[:2]
    spans = [dilation[i] * (kernel[i] - 1) + 1 for i in (0, 1)]
    out_h, out_w = ((x_shape[2 + i] - spans[i]) // stride[i] + 1 for i in (0, 1))
    rows = rows.reshape(batch, out_h, out_w, channels, *kernel)
    image = np.zeros(x_shape, rows.dtype)
    for p in range(kernel[0]):
        for q in range(kernel[1]):
            to = image[:, :, p * dilation[0] :: stride[0], q * dilation[1] :: stride[1]]
            to[:, :, :out_h, :out_w] += rows[..., p, q].transpose(0, 3, 1, 2)
    return image
""",
        "ignores the stride": """
def rows_to_image(rows, x_shape, kernel, stride=(1, 1), dilation=(1, 1)):
    batch, channels = x_shape[:2]
    spans = [dilation[i] * (kernel[i] - 1) + 1 for i in (0, 1)]
    out_h, out_w = ((x_shape[2 + i] - spans[i]) // stride[i] + 1 for i in (0, 1))
    rows = rows.reshape(batch, out_h, out_w, *kernel, channels)
    image = np.zeros(x_shape, rows.dtype)
    for p in range(kernel[0]):
        for q in range(kernel[1]):
            to = image[:, :, p * dilation[0] :, q * dilation[1] :]
            to[:, :, :out_h, :out_w] += rows[:, :, :, p, q].transpose(0, 3, 1, 2)
    return image
""",
        "changes the rows it was given": """
def rows_to_image(rows, x_shape, kernel, stride=(1, 1), dilation=(1, 1)):
    batch, channels = x_shape[:2]
    spans = [dilation[i] * (kernel[i] - 1) + 1 for i in (0, 1)]
    out_h, out_w = ((x_shape[2 + i] - spans[i]) // stride[i] + 1 for i in (0, 1))
    entries = rows.reshape(batch, out_h, out_w, *kernel, channels)
    image = np.zeros(x_shape, rows.dtype)
    for p in range(kernel[0]):
        for q in range(kernel[1]):
            to = image[:, :, p * dilation[0] :: stride[0], q * dilation[1] :: stride[1]]
            to[:, :, :out_h, :out_w] += entries[:, :, :, p, q].transpose(0, 3, 1, 2)
            entries[:, :, :, p, q] = 0
    return image
""",
    },
    "without_stride": {
        "channels of images and filters in different order": """
def without_stride(x, weight, stride):
    def blocks(array, rows, columns, order):
        whole = np.zeros((*array.shape[:2], rows * stride, columns * stride), array.dtype)
        array = array[:, :, : rows * stride, : columns * stride]
        whole[:, :, : array.shape[2], : array.shape[3]] = array
        whole = whole.reshape(*array.shape[:2], rows, stride, columns, stride)
        return whole.transpose(order).reshape(len(array), -1, rows, columns)

    filter_rows, filter_columns = (-(-size // stride) for size in weight.shape[2:])
    out_h, out_w = ((x.shape[i] - weight.shape[i]) // stride + 1 for i in (2, 3))
    new_x = blocks(x, out_h + filter_rows - 1, out_w + filter_columns - 1, (0, 1, 3, 5, 2, 4))
    return new_x, blocks(weight, filter_rows, filter_columns, (0, 3, 5, 1, 2, 4))
""",
        "leaves out pixels instead": """
def without_stride(x, weight, stride):
    return x[:, :, ::stride, ::stride], weight[:, :, ::stride, ::stride]
""",
        "halves of the image instead of blocks": """
def without_stride(x, weight, stride):
    def blocks(array, rows, columns):
        whole = np.zeros((*array.shape[:2], rows * stride, columns * stride), array.dtype)
        array = array[:, :, : rows * stride, : columns * stride]
        whole[:, :, : array.shape[2], : array.shape[3]] = array
        return whole.reshape(len(array), -1, rows, columns)

    filter_rows, filter_columns = (-(-size // stride) for size in weight.shape[2:])
    out_h, out_w = ((x.shape[i] - weight.shape[i]) // stride + 1 for i in (2, 3))
    new_x = blocks(x, out_h + filter_rows - 1, out_w + filter_columns - 1)
    return new_x, blocks(weight, filter_rows, filter_columns)
""",
        "a float64 slips in": """
def without_stride(x, weight, stride):
    def blocks(array, rows, columns):
        whole = np.zeros((*array.shape[:2], rows * stride, columns * stride))
        array = array[:, :, : rows * stride, : columns * stride]
        whole[:, :, : array.shape[2], : array.shape[3]] = array
        whole = whole.reshape(*array.shape[:2], rows, stride, columns, stride)
        return whole.transpose(0, 1, 3, 5, 2, 4).reshape(len(array), -1, rows, columns)

    filter_rows, filter_columns = (-(-size // stride) for size in weight.shape[2:])
    out_h, out_w = ((x.shape[i] - weight.shape[i]) // stride + 1 for i in (2, 3))
    new_x = blocks(x, out_h + filter_rows - 1, out_w + filter_columns - 1)
    return new_x, blocks(weight, filter_rows, filter_columns)
""",
        "wins windows by filling the image up": """
def without_stride(x, weight, stride):
    def blocks(array, rows, columns):
        whole = np.zeros((*array.shape[:2], rows * stride, columns * stride), array.dtype)
        whole[:, :, : array.shape[2], : array.shape[3]] = array
        whole = whole.reshape(*array.shape[:2], rows, stride, columns, stride)
        return whole.transpose(0, 1, 3, 5, 2, 4).reshape(len(array), -1, rows, columns)

    new_x = blocks(x, *(-(-size // stride) for size in x.shape[2:]))
    return new_x, blocks(weight, *(-(-size // stride) for size in weight.shape[2:]))
""",
        "loses windows by cutting the image down": """
def without_stride(x, weight, stride):
    def blocks(array, rows, columns):
        whole = np.zeros((*array.shape[:2], rows * stride, columns * stride), array.dtype)
        array = array[:, :, : rows * stride, : columns * stride]
        whole[:, :, : array.shape[2], : array.shape[3]] = array
        whole = whole.reshape(*array.shape[:2], rows, stride, columns, stride)
        return whole.transpose(0, 1, 3, 5, 2, 4).reshape(len(array), -1, rows, columns)

    new_x = blocks(x, *(size // stride for size in x.shape[2:]))
    return new_x, blocks(weight, *(-(-size // stride) for size in weight.shape[2:]))
""",
        "fills the filters up in front": """
def without_stride(x, weight, stride):
    def blocks(array, rows, columns, front):
        whole = np.zeros((*array.shape[:2], rows * stride, columns * stride), array.dtype)
        array = array[:, :, : rows * stride, : columns * stride]
        top, left = (rows * stride - array.shape[2], columns * stride - array.shape[3])
        top, left = (top, left) if front else (0, 0)
        whole[:, :, top : top + array.shape[2], left : left + array.shape[3]] = array
        whole = whole.reshape(*array.shape[:2], rows, stride, columns, stride)
        return whole.transpose(0, 1, 3, 5, 2, 4).reshape(len(array), -1, rows, columns)

    filter_rows, filter_columns = (-(-size // stride) for size in weight.shape[2:])
    out_h, out_w = ((x.shape[i] - weight.shape[i]) // stride + 1 for i in (2, 3))
    new_x = blocks(x, out_h + filter_rows - 1, out_w + filter_columns - 1, False)
    return new_x, blocks(weight, filter_rows, filter_columns, True)
""",
    },
    "days_with_transfer": {
        "adds both even when overlapped": """
def days_with_transfer(
    images_per_s, batch, image_bytes, bus_gb_per_s, overlapped=False, epochs=90, images=1_281_167
):
    compute_s = batch / images_per_s
    move_s = batch * image_bytes / (bus_gb_per_s * 1e9)
    return epochs * -(-images // batch) * (compute_s + move_s) / 86_400
""",
        "bits for bytes": """
def days_with_transfer(
    images_per_s, batch, image_bytes, bus_gb_per_s, overlapped=False, epochs=90, images=1_281_167
):
    compute_s = batch / images_per_s
    move_s = 8 * batch * image_bytes / (bus_gb_per_s * 1e9)
    step_s = max(compute_s, move_s) if overlapped else compute_s + move_s
    return epochs * -(-images // batch) * step_s / 86_400
""",
        "gibibytes for gigabytes": """
def days_with_transfer(
    images_per_s, batch, image_bytes, bus_gb_per_s, overlapped=False, epochs=90, images=1_281_167
):
    compute_s = batch / images_per_s
    move_s = batch * image_bytes / (bus_gb_per_s * 2**30)
    step_s = max(compute_s, move_s) if overlapped else compute_s + move_s
    return epochs * -(-images // batch) * step_s / 86_400
""",
        "drops the last batch of a pass": """
def days_with_transfer(
    images_per_s, batch, image_bytes, bus_gb_per_s, overlapped=False, epochs=90, images=1_281_167
):
    compute_s = batch / images_per_s
    move_s = batch * image_bytes / (bus_gb_per_s * 1e9)
    step_s = max(compute_s, move_s) if overlapped else compute_s + move_s
    return epochs * (images // batch) * step_s / 86_400
""",
        "batches run on across passes": """
def days_with_transfer(
    images_per_s, batch, image_bytes, bus_gb_per_s, overlapped=False, epochs=90, images=1_281_167
):
    compute_s = batch / images_per_s
    move_s = batch * image_bytes / (bus_gb_per_s * 1e9)
    step_s = max(compute_s, move_s) if overlapped else compute_s + move_s
    return -(-epochs * images // batch) * step_s / 86_400
""",
        "moves one image a step": """
def days_with_transfer(
    images_per_s, batch, image_bytes, bus_gb_per_s, overlapped=False, epochs=90, images=1_281_167
):
    compute_s = batch / images_per_s
    move_s = image_bytes / (bus_gb_per_s * 1e9)
    step_s = max(compute_s, move_s) if overlapped else compute_s + move_s
    return epochs * -(-images // batch) * step_s / 86_400
""",
        "hours": """
def days_with_transfer(
    images_per_s, batch, image_bytes, bus_gb_per_s, overlapped=False, epochs=90, images=1_281_167
):
    compute_s = batch / images_per_s
    move_s = batch * image_bytes / (bus_gb_per_s * 1e9)
    step_s = max(compute_s, move_s) if overlapped else compute_s + move_s
    return epochs * -(-images // batch) * step_s / 3600
""",
        "overlapped, the way is free": """
def days_with_transfer(
    images_per_s, batch, image_bytes, bus_gb_per_s, overlapped=False, epochs=90, images=1_281_167
):
    compute_s = batch / images_per_s
    move_s = batch * image_bytes / (bus_gb_per_s * 1e9)
    step_s = compute_s if overlapped else compute_s + move_s
    return epochs * -(-images // batch) * step_s / 86_400
""",
    },
    "prepare_and_count": {
        "calls NumPy by its name": """
def prepare_and_count(images, logits, labels):
    pixels = images.astype(np.float32)
    mean = np.mean(pixels, axis=(0, 2, 3), keepdims=True)
    spread = np.std(pixels, axis=(0, 2, 3), keepdims=True)
    flat = pixels.max(axis=(0, 2, 3), keepdims=True) == pixels.min(axis=(0, 2, 3), keepdims=True)
    prepared = np.where(flat, np.float32(0), (pixels - mean) / np.where(flat, 1, spread))
    return prepared.astype(np.float32), (np.argmax(logits, axis=1) == labels).sum()
""",
        "a float64 slips in": """
def prepare_and_count(images, logits, labels):
    xp = array_module(images)
    mean = images.mean(axis=(0, 2, 3), keepdims=True)
    spread = images.std(axis=(0, 2, 3), keepdims=True)
    prepared = xp.where(spread == 0, 0.0, (images - mean) / xp.where(spread == 0, 1.0, spread))
    return prepared, (logits.argmax(axis=1) == labels).sum()
""",
        "divides by zero": """
def prepare_and_count(images, logits, labels):
    xp = array_module(images)
    pixels = images.astype(xp.float32)
    centred = pixels - pixels.mean(axis=(0, 2, 3), keepdims=True)
    prepared = centred / pixels.std(axis=(0, 2, 3), keepdims=True)
    return prepared, (logits.argmax(axis=1) == labels).sum()
""",
        "goes through the CPU": """
def prepare_and_count(images, logits, labels):
    pixels = to_cpu(images).astype(np.float32)
    mean = pixels.mean(axis=(0, 2, 3), keepdims=True)
    spread = pixels.std(axis=(0, 2, 3), keepdims=True)
    prepared = np.where(spread > 0, (pixels - mean) / np.where(spread > 0, spread, 1), 0)
    right = np.asarray((to_cpu(logits).argmax(axis=1) == to_cpu(labels)).sum())
    prepared = prepared.astype(np.float32)
    if array_module(images) is np:
        return prepared, right
    return to_gpu(prepared), to_gpu(right)
""",
        "fetches the count": """
def prepare_and_count(images, logits, labels):
    xp = array_module(images)
    pixels = images.astype(xp.float32)
    flat = pixels.max(axis=(0, 2, 3), keepdims=True) == pixels.min(axis=(0, 2, 3), keepdims=True)
    centred = pixels - pixels.mean(axis=(0, 2, 3), keepdims=True)
    spread = xp.where(flat, xp.float32(1), pixels.std(axis=(0, 2, 3), keepdims=True))
    prepared = xp.where(flat, xp.float32(0), centred / spread)
    return prepared, int((logits.argmax(axis=1) == labels).sum())
""",
        "an if for every channel": """
def prepare_and_count(images, logits, labels):
    xp = array_module(images)
    prepared = images.astype(xp.float32)
    for channel in range(images.shape[1]):
        pixels = prepared[:, channel].copy()
        if pixels.max() > pixels.min():
            prepared[:, channel] = (pixels - pixels.mean()) / pixels.std()
        else:
            prepared[:, channel] = 0
    return prepared, (logits.argmax(axis=1) == labels).sum()
""",
        "each image by itself": """
def prepare_and_count(images, logits, labels):
    xp = array_module(images)
    pixels = images.astype(xp.float32)
    flat = pixels.max(axis=(2, 3), keepdims=True) == pixels.min(axis=(2, 3), keepdims=True)
    centred = pixels - pixels.mean(axis=(2, 3), keepdims=True)
    spread = xp.where(flat, xp.float32(1), pixels.std(axis=(2, 3), keepdims=True))
    prepared = xp.where(flat, xp.float32(0), centred / spread)
    return prepared, (logits.argmax(axis=1) == labels).sum()
""",
        "counts along the wrong axis": """
def prepare_and_count(images, logits, labels):
    xp = array_module(images)
    pixels = images.astype(xp.float32)
    flat = pixels.max(axis=(0, 2, 3), keepdims=True) == pixels.min(axis=(0, 2, 3), keepdims=True)
    centred = pixels - pixels.mean(axis=(0, 2, 3), keepdims=True)
    spread = xp.where(flat, xp.float32(1), pixels.std(axis=(0, 2, 3), keepdims=True))
    prepared = xp.where(flat, xp.float32(0), centred / spread)
    return prepared, (logits.max(axis=1) == labels).sum()
""",
        "an epsilon for the division": """
def prepare_and_count(images, logits, labels):
    xp = array_module(images)
    pixels = images.astype(xp.float32)
    centred = pixels - pixels.mean(axis=(0, 2, 3), keepdims=True)
    prepared = centred / (pixels.std(axis=(0, 2, 3), keepdims=True) + xp.float32(1))
    return prepared, (logits.argmax(axis=1) == labels).sum()
""",
    },
    "break_even": {
        "forgets the transfer": """
def break_even(rows):
    answer = None
    for row in sorted(rows, key=lambda row: row["size"], reverse=True):
        if row["gpu_ms"] >= row["cpu_ms"]:
            break
        answer = row["size"]
    return answer
""",
        "the first win": """
def break_even(rows):
    wins = [r["size"] for r in rows if r["gpu_ms"] + r["transfer_ms"] < r["cpu_ms"]]
    return min(wins, default=None)
""",
        "takes the list for sorted": """
def break_even(rows):
    answer = None
    for row in reversed(rows):
        if row["gpu_ms"] + row["transfer_ms"] >= row["cpu_ms"]:
            break
        answer = row["size"]
    return answer
""",
        "as fast counts as faster": """
def break_even(rows):
    answer = None
    for row in sorted(rows, key=lambda row: row["size"], reverse=True):
        if row["gpu_ms"] + row["transfer_ms"] > row["cpu_ms"]:
            break
        answer = row["size"]
    return answer
""",
        "the last loss": """
def break_even(rows):
    losses = [r["size"] for r in rows if r["gpu_ms"] + r["transfer_ms"] >= r["cpu_ms"]]
    return max(losses, default=None)
""",
        "the size behind the last loss, even where it never wins": """
def break_even(rows):
    if not rows:
        return None
    rows = sorted(rows, key=lambda row: row["size"])
    lost = [i for i, r in enumerate(rows) if r["gpu_ms"] + r["transfer_ms"] >= r["cpu_ms"]]
    return rows[min(len(rows) - 1, max(lost, default=-1) + 1)]["size"]
""",
        "the transfer there counts, the way back not": """
def break_even(rows):
    answer = None
    for row in sorted(rows, key=lambda row: row["size"], reverse=True):
        if row["gpu_ms"] + row["transfer_ms"] / 2 >= row["cpu_ms"]:
            break
        answer = row["size"]
    return answer
""",
        "no row, no answer": """
def break_even(rows):
    rows = sorted(rows, key=lambda row: row["size"])
    wins = [r["gpu_ms"] + r["transfer_ms"] < r["cpu_ms"] for r in rows]
    for i, row in enumerate(rows):
        if all(wins[i:]):
            return row["size"]
    return rows[-1]["size"] if rows else None
""",
    },
    "kernel_time": {
        "never waits": """
def kernel_time(launch, synchronize, clock, repeats=10):
    launch()
    synchronize()
    start = clock()
    for _ in range(repeats):
        launch()
    return (clock() - start) / repeats
""",
        "no warm-up": """
def kernel_time(launch, synchronize, clock, repeats=10):
    def together(count):
        synchronize()
        start = clock()
        for _ in range(count):
            launch()
        synchronize()
        return clock() - start

    first = together(repeats)
    return (together(2 * repeats) - first) / repeats
""",
        "starts the clock while older work runs": """
def kernel_time(launch, synchronize, clock, repeats=10):
    def together(count):
        start = clock()
        for _ in range(count):
            launch()
        synchronize()
        return clock() - start

    launch()
    first = together(repeats)
    return (together(2 * repeats) - first) / repeats
""",
        "one launch, waited for": """
def kernel_time(launch, synchronize, clock, repeats=10):
    launch()
    synchronize()
    start = clock()
    launch()
    synchronize()
    return clock() - start
""",
        "waits after every launch": """
def kernel_time(launch, synchronize, clock, repeats=10):
    launch()
    synchronize()
    start = clock()
    for _ in range(repeats):
        launch()
        synchronize()
    return (clock() - start) / repeats
""",
        "waits once for all, and shares it out": """
def kernel_time(launch, synchronize, clock, repeats=10):
    launch()
    synchronize()
    start = clock()
    for _ in range(repeats):
        launch()
    synchronize()
    return (clock() - start) / repeats
""",
        "subtracts the time of ordering": """
def kernel_time(launch, synchronize, clock, repeats=10):
    launch()
    synchronize()
    start = clock()
    for _ in range(repeats):
        launch()
    ordered = clock()
    synchronize()
    return (clock() - ordered) / repeats
""",
        "divides by all launches": """
def kernel_time(launch, synchronize, clock, repeats=10):
    def together(count):
        synchronize()
        start = clock()
        for _ in range(count):
            launch()
        synchronize()
        return clock() - start

    launch()
    first = together(repeats)
    return (together(2 * repeats) - first) / (2 * repeats)
""",
        "launches until the overhead is small": """
def kernel_time(launch, synchronize, clock, repeats=10):
    launch()
    synchronize()
    start = clock()
    for _ in range(100_000):
        launch()
    synchronize()
    return (clock() - start) / 100_000
""",
        "works the waiting out, in time of one wait": """
def kernel_time(launch, synchronize, clock, repeats=10):
    launch()
    synchronize()
    before = clock()
    synchronize()
    wait = clock() - before
    start = clock()
    for _ in range(repeats):
        launch()
    synchronize()
    return (clock() - start - wait) / repeats
""",
    },
    "efficiencies": {
        "against one GPU, which is not in the table": """
def efficiencies(rows):
    best = {}
    for row in rows:
        best[row["gpus"]] = max(row["images_per_s"], best.get(row["gpus"], 0))
    one = best[min(best)]
    return {gpus: 100 * best[gpus] / gpus / one for gpus in sorted(best)}
""",
        "the last run counts": """
def efficiencies(rows):
    best = {row["gpus"]: row["images_per_s"] for row in rows}
    one = best[min(best)] / min(best)
    return {gpus: 100 * best[gpus] / gpus / one for gpus in sorted(best)}
""",
        "the speed-up": """
def efficiencies(rows):
    best = {}
    for row in rows:
        best[row["gpus"]] = max(row["images_per_s"], best.get(row["gpus"], 0))
    one = best[min(best)] / min(best)
    return {gpus: best[gpus] / one for gpus in sorted(best)}
""",
        "a share, not percent": """
def efficiencies(rows):
    best = {}
    for row in rows:
        best[row["gpus"]] = max(row["images_per_s"], best.get(row["gpus"], 0))
    one = best[min(best)] / min(best)
    return {gpus: best[gpus] / gpus / one for gpus in sorted(best)}
""",
        "takes the first row for the smallest": """
def efficiencies(rows):
    best = {}
    for row in rows:
        best[row["gpus"]] = max(row["images_per_s"], best.get(row["gpus"], 0))
    first = rows[0]["gpus"]
    one = best[first] / first
    return {gpus: 100 * best[gpus] / gpus / one for gpus in sorted(best)}
""",
        "in the order of the table": """
def efficiencies(rows):
    best = {}
    for row in rows:
        best[row["gpus"]] = max(row["images_per_s"], best.get(row["gpus"], 0))
    one = best[min(best)] / min(best)
    return {gpus: 100 * best[gpus] / gpus / one for gpus in best}
""",
        "the mean of the runs": """
def efficiencies(rows):
    runs = {}
    for row in rows:
        runs.setdefault(row["gpus"], []).append(row["images_per_s"])
    mean = {gpus: sum(runs[gpus]) / len(runs[gpus]) for gpus in sorted(runs)}
    one = mean[min(mean)] / min(mean)
    return {gpus: 100 * mean[gpus] / gpus / one for gpus in mean}
""",
    },
    "expected_slowest_s": {
        "the largest there is": """
def expected_slowest_s(times_s, workers):
    return float(max(times_s))
""",
        "the mean, whatever the number": """
def expected_slowest_s(times_s, workers):
    return float(np.mean(times_s))
""",
        "forgets to sort": """
def expected_slowest_s(times_s, workers):
    times_s = np.asarray(times_s, dtype=np.float64)
    done = (np.arange(len(times_s) + 1) / len(times_s)) ** workers
    return float(times_s @ np.diff(done))
""",
        "the fastest of n": """
def expected_slowest_s(times_s, workers):
    times_s = np.sort(np.asarray(times_s, dtype=np.float64))[::-1]
    done = (np.arange(len(times_s) + 1) / len(times_s)) ** workers
    return float(times_s @ np.diff(done))
""",
        "counts from zero": """
def expected_slowest_s(times_s, workers):
    times_s = np.sort(np.asarray(times_s, dtype=np.float64))
    done = (np.arange(len(times_s)) / len(times_s)) ** workers
    return float(times_s[1:] @ np.diff(done) + times_s[0] * done[0])
""",
        "adds the probabilities up": """
def expected_slowest_s(times_s, workers):
    times_s = np.sort(np.asarray(times_s, dtype=np.float64))
    done = np.minimum(1, workers * np.arange(len(times_s) + 1) / len(times_s))
    return float(times_s @ np.diff(done))
""",
        "without replacement": """
def expected_slowest_s(times_s, workers):
    times_s = sorted(times_s)
    count, n = len(times_s), min(workers, len(times_s))
    ways = [math.comb(k, n) for k in range(count + 1)]
    return sum(t * (ways[k + 1] - ways[k]) for k, t in enumerate(times_s)) / ways[-1]
""",
        "an exponential tail is assumed": """
def expected_slowest_s(times_s, workers):
    mean, spread = float(np.mean(times_s)), float(np.std(times_s))
    return mean + spread * (sum(1 / i for i in range(1, workers + 1)) - 1)
""",
        "a quantile": """
def expected_slowest_s(times_s, workers):
    return float(np.quantile(times_s, workers / (workers + 1)))
""",
    },
    "exposed_s": {
        "sends all at the end": """
def exposed_s(layers, gb_per_s, latency_s=0.0):
    return sum(latency_s + size / gb_per_s / 1e9 for _, size in layers if size)
""",
        "as if all could hide": """
def exposed_s(layers, gb_per_s, latency_s=0.0):
    sending = sum(latency_s + size / gb_per_s / 1e9 for _, size in layers if size)
    return max(0.0, sending - sum(seconds for seconds, _ in layers))
""",
        "sends before there is anything": """
def exposed_s(layers, gb_per_s, latency_s=0.0):
    free = computed = 0.0
    for seconds, size in layers:
        if size:
            free = max(free, computed) + latency_s + size / gb_per_s / 1e9
        computed += seconds
    return max(0.0, free - computed)
""",
        "a link for every message": """
def exposed_s(layers, gb_per_s, latency_s=0.0):
    computed, last = 0.0, 0.0
    for seconds, size in layers:
        computed += seconds
        if size:
            last = max(last, computed + latency_s + size / gb_per_s / 1e9)
    return max(0.0, last - computed)
""",
        "in the forward order": """
def exposed_s(layers, gb_per_s, latency_s=0.0):
    computed = free = 0.0
    for seconds, size in reversed(layers):
        computed += seconds
        if size:
            free = max(free, computed) + latency_s + size / gb_per_s / 1e9
    return max(0.0, free - computed)
""",
        "forgets the latency": """
def exposed_s(layers, gb_per_s, latency_s=0.0):
    computed = free = 0.0
    for seconds, size in layers:
        computed += seconds
        if size:
            free = max(free, computed) + size / gb_per_s / 1e9
    return max(0.0, free - computed)
""",
        "empty messages": """
def exposed_s(layers, gb_per_s, latency_s=0.0):
    computed = free = 0.0
    for seconds, size in layers:
        computed += seconds
        free = max(free, computed) + latency_s + size / gb_per_s / 1e9
    return max(0.0, free - computed)
""",
        "below zero": """
def exposed_s(layers, gb_per_s, latency_s=0.0):
    computed = free = 0.0
    for seconds, size in layers:
        computed += seconds
        if size:
            free = max(free, computed) + latency_s + size / gb_per_s / 1e9
    return free - computed
""",
        "the whole step": """
def exposed_s(layers, gb_per_s, latency_s=0.0):
    computed = free = 0.0
    for seconds, size in layers:
        computed += seconds
        if size:
            free = max(free, computed) + latency_s + size / gb_per_s / 1e9
    return max(computed, free)
""",
        "gigabits": """
def exposed_s(layers, gb_per_s, latency_s=0.0):
    computed = free = 0.0
    for seconds, size in layers:
        computed += seconds
        if size:
            free = max(free, computed) + latency_s + 8 * size / gb_per_s / 1e9
    return max(0.0, free - computed)
""",
    },
    "ring_all_reduce": {
        "sums without sending": """
def ring_all_reduce(gradients, send):
    return [sum(gradients) for _ in gradients]
""",
        "sends everything round": """
def ring_all_reduce(gradients, send):
    n = len(gradients)
    sums = [gradient.copy() for gradient in gradients]
    moving = [gradient.copy() for gradient in gradients]
    for _ in range(n - 1):
        arrived = [send(w, (w + 1) % n, moving[w]) for w in range(n)]
        moving = [arrived[w - 1] for w in range(n)]
        sums = [total + new for total, new in zip(sums, moving)]
    return sums
""",
        "the average": """
def ring_all_reduce(gradients, send):
    n = len(gradients)
    chunks = [np.array_split(g.ravel().copy(), n) for g in gradients]
    for step in range(n - 1):
        sent = [send(w, (w + 1) % n, chunks[w][(w - step) % n]) for w in range(n)]
        for w, arrived in enumerate(sent):
            chunks[(w + 1) % n][(w - step) % n] += arrived
    for step in range(n - 1):
        sent = [send(w, (w + 1) % n, chunks[w][(w + 1 - step) % n]) for w in range(n)]
        for w, arrived in enumerate(sent):
            chunks[(w + 1) % n][(w + 1 - step) % n] = arrived
    return [np.concatenate(c).reshape(g.shape) / g.dtype.type(n) for c, g in zip(chunks, gradients)]
""",
        "adds into the input": """
def ring_all_reduce(gradients, send):
    n = len(gradients)
    chunks = [np.array_split(g.reshape(-1), n) for g in gradients]
    for step in range(n - 1):
        sent = [send(w, (w + 1) % n, chunks[w][(w - step) % n]) for w in range(n)]
        for w, arrived in enumerate(sent):
            chunks[(w + 1) % n][(w - step) % n] += arrived
    for step in range(n - 1):
        sent = [send(w, (w + 1) % n, chunks[w][(w + 1 - step) % n]) for w in range(n)]
        for w, arrived in enumerate(sent):
            chunks[(w + 1) % n][(w + 1 - step) % n][...] = arrived
    return [np.concatenate(c).reshape(g.shape) for c, g in zip(chunks, gradients)]
""",
        "a float64 that slips in": """
def ring_all_reduce(gradients, send):
    n = len(gradients)
    chunks = [np.array_split(g.ravel().astype(np.float64), n) for g in gradients]
    for step in range(n - 1):
        sent = [send(w, (w + 1) % n, chunks[w][(w - step) % n]) for w in range(n)]
        for w, arrived in enumerate(sent):
            chunks[(w + 1) % n][(w - step) % n] += arrived
    for step in range(n - 1):
        sent = [send(w, (w + 1) % n, chunks[w][(w + 1 - step) % n]) for w in range(n)]
        for w, arrived in enumerate(sent):
            chunks[(w + 1) % n][(w + 1 - step) % n] = arrived
    return [np.concatenate(c).reshape(g.shape) for c, g in zip(chunks, gradients)]
""",
        "drops what n does not divide": """
def ring_all_reduce(gradients, send):
    n = len(gradients)
    flat, size = [g.ravel().copy() for g in gradients], gradients[0].size // n
    cut = [slice(i * size, (i + 1) * size) for i in range(n)]
    for step in range(n - 1):
        sent = [send(w, (w + 1) % n, flat[w][cut[(w - step) % n]]) for w in range(n)]
        for w, arrived in enumerate(sent):
            flat[(w + 1) % n][cut[(w - step) % n]] += arrived
    for step in range(n - 1):
        sent = [send(w, (w + 1) % n, flat[w][cut[(w + 1 - step) % n]]) for w in range(n)]
        for w, arrived in enumerate(sent):
            flat[(w + 1) % n][cut[(w + 1 - step) % n]] = arrived
    return [f.reshape(g.shape) for f, g in zip(flat, gradients)]
""",
        "stops halfway": """
def ring_all_reduce(gradients, send):
    n = len(gradients)
    chunks = [np.array_split(g.ravel().copy(), n) for g in gradients]
    for step in range(n - 1):
        sent = [send(w, (w + 1) % n, chunks[w][(w - step) % n]) for w in range(n)]
        for w, arrived in enumerate(sent):
            chunks[(w + 1) % n][(w - step) % n] += arrived
    return [np.concatenate(c).reshape(g.shape) for c, g in zip(chunks, gradients)]
""",
        "adds on the second way round, too": """
def ring_all_reduce(gradients, send):
    n = len(gradients)
    chunks = [np.array_split(g.ravel().copy(), n) for g in gradients]
    for step in range(2 * (n - 1)):
        sent = [send(w, (w + 1) % n, chunks[w][(w - step) % n]) for w in range(n)]
        for w, arrived in enumerate(sent):
            chunks[(w + 1) % n][(w - step) % n] += arrived
    return [np.concatenate(c).reshape(g.shape) for c, g in zip(chunks, gradients)]
""",
        "the second way round starts at the wrong chunk": """
def ring_all_reduce(gradients, send):
    n = len(gradients)
    chunks = [np.array_split(g.ravel().copy(), n) for g in gradients]
    for step in range(n - 1):
        sent = [send(w, (w + 1) % n, chunks[w][(w - step) % n]) for w in range(n)]
        for w, arrived in enumerate(sent):
            chunks[(w + 1) % n][(w - step) % n] += arrived
    for step in range(n - 1):
        sent = [send(w, (w + 1) % n, chunks[w][(w - step) % n]) for w in range(n)]
        for w, arrived in enumerate(sent):
            chunks[(w + 1) % n][(w - step) % n] = arrived
    return [np.concatenate(c).reshape(g.shape) for c, g in zip(chunks, gradients)]
""",
        "all to the first, and back": """
def ring_all_reduce(gradients, send):
    total = gradients[0].copy()
    for worker in range(1, len(gradients)):
        total = total + send(worker, 0, gradients[worker])
    return [total] + [send(0, worker, total) for worker in range(1, len(gradients))]
""",
        "one after the other: a chain there and on": """
def ring_all_reduce(gradients, send):
    n, total = len(gradients), gradients[0].copy()
    for worker in range(n - 1):
        total = send(worker, worker + 1, total) + gradients[worker + 1]
    results = [None] * n
    results[n - 1] = total
    for step in range(n - 1):
        worker = (n - 1 + step) % n
        results[(worker + 1) % n] = send(worker, (worker + 1) % n, results[worker])
    return results
""",
        "forgets the shape": """
def ring_all_reduce(gradients, send):
    n = len(gradients)
    chunks = [np.array_split(g.ravel().copy(), n) for g in gradients]
    for step in range(n - 1):
        sent = [send(w, (w + 1) % n, chunks[w][(w - step) % n]) for w in range(n)]
        for w, arrived in enumerate(sent):
            chunks[(w + 1) % n][(w - step) % n] += arrived
    for step in range(n - 1):
        sent = [send(w, (w + 1) % n, chunks[w][(w + 1 - step) % n]) for w in range(n)]
        for w, arrived in enumerate(sent):
            chunks[(w + 1) % n][(w + 1 - step) % n] = arrived
    return [np.concatenate(c) for c in chunks]
""",
    },
    "decode_float": {
        "the bias is a power of two": """
def decode_float(pattern, exponent_bits, fraction_bits):
    fraction = (pattern % 2**fraction_bits) / 2**fraction_bits
    exponent = (pattern >> fraction_bits) % 2**exponent_bits
    sign = -1.0 if pattern >> (exponent_bits + fraction_bits) else 1.0
    bias = 2 ** (exponent_bits - 1)
    if exponent == 2**exponent_bits - 1:
        return math.nan if fraction else sign * math.inf
    if exponent == 0:
        return sign * fraction * 2.0 ** (1 - bias)
    return sign * (1 + fraction) * 2.0 ** (exponent - bias)
""",
        "every format has the half's bias": """
def decode_float(pattern, exponent_bits, fraction_bits):
    fraction = (pattern % 2**fraction_bits) / 2**fraction_bits
    exponent = (pattern >> fraction_bits) % 2**exponent_bits
    sign = -1.0 if pattern >> (exponent_bits + fraction_bits) else 1.0
    if exponent == 2**exponent_bits - 1:
        return math.nan if fraction else sign * math.inf
    if exponent == 0:
        return sign * fraction * 2.0**-14
    return sign * (1 + fraction) * 2.0 ** (exponent - 15)
""",
        "lets NumPy do it": """
def decode_float(pattern, exponent_bits, fraction_bits):
    return float(np.array(pattern, np.uint16).view(np.float16))
""",
        "lets NumPy do it for halves and bfloat16": """
def decode_float(pattern, exponent_bits, fraction_bits):
    if exponent_bits == 8:
        return float(np.array(pattern << 16, np.uint32).view(np.float32))
    return float(np.array(pattern, np.uint16).view(np.float16))
""",
        "subnormals with a leading one": """
def decode_float(pattern, exponent_bits, fraction_bits):
    fraction = (pattern % 2**fraction_bits) / 2**fraction_bits
    exponent = (pattern >> fraction_bits) % 2**exponent_bits
    sign = -1.0 if pattern >> (exponent_bits + fraction_bits) else 1.0
    bias = 2 ** (exponent_bits - 1) - 1
    if exponent == 2**exponent_bits - 1:
        return math.nan if fraction else sign * math.inf
    if exponent == 0 and fraction == 0:
        return sign * 0.0
    return sign * (1 + fraction) * 2.0 ** (exponent - bias)
""",
        "subnormals one exponent too low": """
def decode_float(pattern, exponent_bits, fraction_bits):
    fraction = (pattern % 2**fraction_bits) / 2**fraction_bits
    exponent = (pattern >> fraction_bits) % 2**exponent_bits
    sign = -1.0 if pattern >> (exponent_bits + fraction_bits) else 1.0
    bias = 2 ** (exponent_bits - 1) - 1
    if exponent == 2**exponent_bits - 1:
        return math.nan if fraction else sign * math.inf
    if exponent == 0:
        return sign * fraction * 2.0 ** (0 - bias)
    return sign * (1 + fraction) * 2.0 ** (exponent - bias)
""",
        "subnormals are zero": """
def decode_float(pattern, exponent_bits, fraction_bits):
    fraction = (pattern % 2**fraction_bits) / 2**fraction_bits
    exponent = (pattern >> fraction_bits) % 2**exponent_bits
    sign = -1.0 if pattern >> (exponent_bits + fraction_bits) else 1.0
    bias = 2 ** (exponent_bits - 1) - 1
    if exponent == 2**exponent_bits - 1:
        return math.nan if fraction else sign * math.inf
    if exponent == 0:
        return sign * 0.0
    return sign * (1 + fraction) * 2.0 ** (exponent - bias)
""",
        "infinity is the next power of two": """
def decode_float(pattern, exponent_bits, fraction_bits):
    fraction = (pattern % 2**fraction_bits) / 2**fraction_bits
    exponent = (pattern >> fraction_bits) % 2**exponent_bits
    sign = -1.0 if pattern >> (exponent_bits + fraction_bits) else 1.0
    bias = 2 ** (exponent_bits - 1) - 1
    if exponent == 0:
        return sign * fraction * 2.0 ** (1 - bias)
    return sign * (1 + fraction) * 2.0 ** (exponent - bias)
""",
        "all of the last exponent is infinite": """
def decode_float(pattern, exponent_bits, fraction_bits):
    fraction = (pattern % 2**fraction_bits) / 2**fraction_bits
    exponent = (pattern >> fraction_bits) % 2**exponent_bits
    sign = -1.0 if pattern >> (exponent_bits + fraction_bits) else 1.0
    bias = 2 ** (exponent_bits - 1) - 1
    if exponent == 2**exponent_bits - 1:
        return sign * math.inf
    if exponent == 0:
        return sign * fraction * 2.0 ** (1 - bias)
    return sign * (1 + fraction) * 2.0 ** (exponent - bias)
""",
        "all of the last exponent is NaN": """
def decode_float(pattern, exponent_bits, fraction_bits):
    fraction = (pattern % 2**fraction_bits) / 2**fraction_bits
    exponent = (pattern >> fraction_bits) % 2**exponent_bits
    sign = -1.0 if pattern >> (exponent_bits + fraction_bits) else 1.0
    bias = 2 ** (exponent_bits - 1) - 1
    if exponent == 2**exponent_bits - 1:
        return math.nan
    if exponent == 0:
        return sign * fraction * 2.0 ** (1 - bias)
    return sign * (1 + fraction) * 2.0 ** (exponent - bias)
""",
        "infinity without a sign": """
def decode_float(pattern, exponent_bits, fraction_bits):
    fraction = (pattern % 2**fraction_bits) / 2**fraction_bits
    exponent = (pattern >> fraction_bits) % 2**exponent_bits
    sign = -1.0 if pattern >> (exponent_bits + fraction_bits) else 1.0
    bias = 2 ** (exponent_bits - 1) - 1
    if exponent == 2**exponent_bits - 1:
        return math.nan if fraction else math.inf
    if exponent == 0:
        return sign * fraction * 2.0 ** (1 - bias)
    return sign * (1 + fraction) * 2.0 ** (exponent - bias)
""",
        "ignores the sign": """
def decode_float(pattern, exponent_bits, fraction_bits):
    fraction = (pattern % 2**fraction_bits) / 2**fraction_bits
    exponent = (pattern >> fraction_bits) % 2**exponent_bits
    bias = 2 ** (exponent_bits - 1) - 1
    if exponent == 2**exponent_bits - 1:
        return math.nan if fraction else math.inf
    if exponent == 0:
        return fraction * 2.0 ** (1 - bias)
    return (1 + fraction) * 2.0 ** (exponent - bias)
""",
        "zero without a sign": """
def decode_float(pattern, exponent_bits, fraction_bits):
    fraction = (pattern % 2**fraction_bits) / 2**fraction_bits
    exponent = (pattern >> fraction_bits) % 2**exponent_bits
    sign = -1.0 if pattern >> (exponent_bits + fraction_bits) else 1.0
    bias = 2 ** (exponent_bits - 1) - 1
    if exponent == 2**exponent_bits - 1:
        return math.nan if fraction else sign * math.inf
    if exponent == 0:
        return sign * fraction * 2.0 ** (1 - bias) if fraction else 0.0
    return sign * (1 + fraction) * 2.0 ** (exponent - bias)
""",
        "two's complement": """
def decode_float(pattern, exponent_bits, fraction_bits):
    size = exponent_bits + fraction_bits
    negative = pattern >> size
    if negative:
        pattern = 2 ** (size + 1) - pattern
    fraction = (pattern % 2**fraction_bits) / 2**fraction_bits
    exponent = (pattern >> fraction_bits) % 2**exponent_bits
    sign = -1.0 if negative else 1.0
    bias = 2 ** (exponent_bits - 1) - 1
    if exponent == 2**exponent_bits - 1:
        return math.nan if fraction else sign * math.inf
    if exponent == 0:
        return sign * fraction * 2.0 ** (1 - bias)
    return sign * (1 + fraction) * 2.0 ** (exponent - bias)
""",
        "the fraction as a decimal": """
def decode_float(pattern, exponent_bits, fraction_bits):
    whole = pattern % 2**fraction_bits
    fraction = whole / 10 ** len(str(whole))
    exponent = (pattern >> fraction_bits) % 2**exponent_bits
    sign = -1.0 if pattern >> (exponent_bits + fraction_bits) else 1.0
    bias = 2 ** (exponent_bits - 1) - 1
    if exponent == 2**exponent_bits - 1:
        return math.nan if fraction else sign * math.inf
    if exponent == 0:
        return sign * whole / 2**fraction_bits * 2.0 ** (1 - bias)
    return sign * (1 + fraction) * 2.0 ** (exponent - bias)
""",
    },
    "smallest_change": {
        "the whole spacing": """
def smallest_change(x, fraction_bits):
    _, exponent = math.frexp(x)
    return 2.0 ** (exponent - 1 - fraction_bits)
""",
        "the tie counts as a change": """
def smallest_change(x, fraction_bits):
    _, exponent = math.frexp(x)
    return 2.0 ** (exponent - 1 - fraction_bits) / 2
""",
        "the tie never counts": """
def smallest_change(x, fraction_bits):
    _, exponent = math.frexp(x)
    return math.nextafter(2.0 ** (exponent - 1 - fraction_bits) / 2, math.inf)
""",
        "ties to odd": """
def smallest_change(x, fraction_bits):
    _, exponent = math.frexp(x)
    spacing = 2.0 ** (exponent - 1 - fraction_bits)
    if x / spacing % 2 == 0:
        return spacing / 2
    return math.nextafter(spacing / 2, math.inf)
""",
        "the same everywhere": """
def smallest_change(x, fraction_bits):
    spacing = 2.0**-fraction_bits
    if x / spacing % 2 == 1:
        return spacing / 2
    return math.nextafter(spacing / 2, math.inf)
""",
        "a percentage of x": """
def smallest_change(x, fraction_bits):
    spacing = x * 2.0**-fraction_bits
    if x / spacing % 2 == 1:
        return spacing / 2
    return math.nextafter(spacing / 2, math.inf)
""",
        "the exponent of frexp as it is": """
def smallest_change(x, fraction_bits):
    _, exponent = math.frexp(x)
    spacing = 2.0 ** (exponent - fraction_bits)
    if x / spacing % 2 == 1:
        return spacing / 2
    return math.nextafter(spacing / 2, math.inf)
""",
        "a little above, by a float64's epsilon of 1": """
def smallest_change(x, fraction_bits):
    _, exponent = math.frexp(x)
    spacing = 2.0 ** (exponent - 1 - fraction_bits)
    if x / spacing % 2 == 1:
        return spacing / 2
    return spacing / 2 + 2.0**-52
""",
        "tries it out in float64": """
def smallest_change(x, fraction_bits):
    _, exponent = math.frexp(x)
    spacing = 2.0 ** (exponent - 1 - fraction_bits)
    d = spacing / 2
    while round((x + d) / spacing) * spacing == x:
        d += 2.0 ** (exponent - 53)
    return d
""",
        "below 1 all is subnormal": """
def smallest_change(x, fraction_bits):
    exponent = max(0, math.floor(math.log2(x)))
    spacing = 2.0 ** (exponent - fraction_bits)
    if x / spacing % 2 == 1:
        return spacing / 2
    return math.nextafter(spacing / 2, math.inf)
""",
        "rounds the exponent": """
def smallest_change(x, fraction_bits):
    spacing = 2.0 ** (round(math.log2(x)) - fraction_bits)
    if x / spacing % 2 == 1:
        return spacing / 2
    return math.nextafter(spacing / 2, math.inf)
""",
        "truncates instead of rounding": """
def smallest_change(x, fraction_bits):
    _, exponent = math.frexp(x)
    spacing = 2.0 ** (exponent - 1 - fraction_bits)
    return math.nextafter(spacing, 0)
""",
    },
    "loss_scale_for": {
        "no headroom": """
def loss_scale_for(gradients, largest, smallest):
    sizes = np.abs(np.asarray(gradients, dtype=np.float64)).ravel()
    if not np.isfinite(sizes).all():
        raise ValueError("not finite")
    sizes = sizes[sizes > 0]
    if not sizes.size:
        return 1.0, 0.0
    _, exponent = math.frexp(largest / sizes.max())
    scale = 2.0 ** (exponent - 1)
    rescued = (sizes <= smallest / 2) & (sizes * scale > smallest / 2)
    return scale, float(rescued.mean())
""",
        "not a power of two": """
def loss_scale_for(gradients, largest, smallest):
    sizes = np.abs(np.asarray(gradients, dtype=np.float64)).ravel()
    if not np.isfinite(sizes).all():
        raise ValueError("not finite")
    sizes = sizes[sizes > 0]
    if not sizes.size:
        return 1.0, 0.0
    scale = largest / (2 * sizes.max())
    rescued = (sizes <= smallest / 2) & (sizes * scale > smallest / 2)
    return float(scale), float(rescued.mean())
""",
        "the next power of two above": """
def loss_scale_for(gradients, largest, smallest):
    sizes = np.abs(np.asarray(gradients, dtype=np.float64)).ravel()
    if not np.isfinite(sizes).all():
        raise ValueError("not finite")
    sizes = sizes[sizes > 0]
    if not sizes.size:
        return 1.0, 0.0
    scale = 2.0 ** math.ceil(math.log2(largest / (2 * sizes.max())))
    rescued = (sizes <= smallest / 2) & (sizes * scale > smallest / 2)
    return scale, float(rescued.mean())
""",
        "the nearest power of two": """
def loss_scale_for(gradients, largest, smallest):
    sizes = np.abs(np.asarray(gradients, dtype=np.float64)).ravel()
    if not np.isfinite(sizes).all():
        raise ValueError("not finite")
    sizes = sizes[sizes > 0]
    if not sizes.size:
        return 1.0, 0.0
    scale = 2.0 ** round(math.log2(largest / (2 * sizes.max())))
    rescued = (sizes <= smallest / 2) & (sizes * scale > smallest / 2)
    return scale, float(rescued.mean())
""",
        "strictly below the largest": """
def loss_scale_for(gradients, largest, smallest):
    sizes = np.abs(np.asarray(gradients, dtype=np.float64)).ravel()
    if not np.isfinite(sizes).all():
        raise ValueError("not finite")
    sizes = sizes[sizes > 0]
    if not sizes.size:
        return 1.0, 0.0
    scale = 2.0 ** (math.ceil(math.log2(largest / (2 * sizes.max()))) - 1)
    rescued = (sizes <= smallest / 2) & (sizes * scale > smallest / 2)
    return scale, float(rescued.mean())
""",
        "never below 1": """
def loss_scale_for(gradients, largest, smallest):
    sizes = np.abs(np.asarray(gradients, dtype=np.float64)).ravel()
    if not np.isfinite(sizes).all():
        raise ValueError("not finite")
    sizes = sizes[sizes > 0]
    if not sizes.size:
        return 1.0, 0.0
    scale = 1.0
    while 4 * scale * sizes.max() <= largest:
        scale *= 2
    rescued = (sizes <= smallest / 2) & (sizes * scale > smallest / 2)
    return scale, float(rescued.mean())
""",
        "the largest, not the largest size": """
def loss_scale_for(gradients, largest, smallest):
    values = np.asarray(gradients, dtype=np.float64).ravel()
    if not np.isfinite(values).all():
        raise ValueError("not finite")
    sizes = np.abs(values[values != 0])
    if not sizes.size:
        return 1.0, 0.0
    top = max(values.max(), 1e-30)
    _, exponent = math.frexp(largest / (2 * top))
    scale = 2.0 ** (exponent - 1)
    rescued = (sizes <= smallest / 2) & (sizes * scale > smallest / 2)
    return scale, float(rescued.mean())
""",
        "all below the smallest are lost": """
def loss_scale_for(gradients, largest, smallest):
    sizes = np.abs(np.asarray(gradients, dtype=np.float64)).ravel()
    if not np.isfinite(sizes).all():
        raise ValueError("not finite")
    sizes = sizes[sizes > 0]
    if not sizes.size:
        return 1.0, 0.0
    _, exponent = math.frexp(largest / (2 * sizes.max()))
    scale = 2.0 ** (exponent - 1)
    rescued = (sizes < smallest) & (sizes * scale >= smallest)
    return scale, float(rescued.mean())
""",
        "the tie survives": """
def loss_scale_for(gradients, largest, smallest):
    sizes = np.abs(np.asarray(gradients, dtype=np.float64)).ravel()
    if not np.isfinite(sizes).all():
        raise ValueError("not finite")
    sizes = sizes[sizes > 0]
    if not sizes.size:
        return 1.0, 0.0
    _, exponent = math.frexp(largest / (2 * sizes.max()))
    scale = 2.0 ** (exponent - 1)
    rescued = (sizes < smallest / 2) & (sizes * scale >= smallest / 2)
    return scale, float(rescued.mean())
""",
        "zeros count, too": """
def loss_scale_for(gradients, largest, smallest):
    sizes = np.abs(np.asarray(gradients, dtype=np.float64)).ravel()
    if not np.isfinite(sizes).all():
        raise ValueError("not finite")
    if not sizes.any():
        return 1.0, 0.0
    _, exponent = math.frexp(largest / (2 * sizes.max()))
    scale = 2.0 ** (exponent - 1)
    rescued = (sizes <= smallest / 2) & (sizes * scale > smallest / 2)
    return scale, float(rescued.mean())
""",
        "all that survive": """
def loss_scale_for(gradients, largest, smallest):
    sizes = np.abs(np.asarray(gradients, dtype=np.float64)).ravel()
    if not np.isfinite(sizes).all():
        raise ValueError("not finite")
    sizes = sizes[sizes > 0]
    if not sizes.size:
        return 1.0, 0.0
    _, exponent = math.frexp(largest / (2 * sizes.max()))
    scale = 2.0 ** (exponent - 1)
    return scale, float((sizes * scale > smallest / 2).mean())
""",
        "all that were lost": """
def loss_scale_for(gradients, largest, smallest):
    sizes = np.abs(np.asarray(gradients, dtype=np.float64)).ravel()
    if not np.isfinite(sizes).all():
        raise ValueError("not finite")
    sizes = sizes[sizes > 0]
    if not sizes.size:
        return 1.0, 0.0
    _, exponent = math.frexp(largest / (2 * sizes.max()))
    return 2.0 ** (exponent - 1), float((sizes <= smallest / 2).mean())
""",
        "of the lost ones": """
def loss_scale_for(gradients, largest, smallest):
    sizes = np.abs(np.asarray(gradients, dtype=np.float64)).ravel()
    if not np.isfinite(sizes).all():
        raise ValueError("not finite")
    sizes = sizes[sizes > 0]
    if not sizes.size:
        return 1.0, 0.0
    _, exponent = math.frexp(largest / (2 * sizes.max()))
    scale = 2.0 ** (exponent - 1)
    lost = sizes <= smallest / 2
    saved = lost & (sizes * scale > smallest / 2)
    return scale, float(saved.sum() / max(1, lost.sum()))
""",
        "a count, not a share": """
def loss_scale_for(gradients, largest, smallest):
    sizes = np.abs(np.asarray(gradients, dtype=np.float64)).ravel()
    if not np.isfinite(sizes).all():
        raise ValueError("not finite")
    sizes = sizes[sizes > 0]
    if not sizes.size:
        return 1.0, 0.0
    _, exponent = math.frexp(largest / (2 * sizes.max()))
    scale = 2.0 ** (exponent - 1)
    rescued = (sizes <= smallest / 2) & (sizes * scale > smallest / 2)
    return scale, float(rescued.sum())
""",
        "lets infinity pass": """
def loss_scale_for(gradients, largest, smallest):
    sizes = np.abs(np.asarray(gradients, dtype=np.float64)).ravel()
    sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
    if not sizes.size:
        return 1.0, 0.0
    _, exponent = math.frexp(largest / (2 * sizes.max()))
    scale = 2.0 ** (exponent - 1)
    rescued = (sizes <= smallest / 2) & (sizes * scale > smallest / 2)
    return scale, float(rescued.mean())
""",
        "lets NaN pass": """
def loss_scale_for(gradients, largest, smallest):
    sizes = np.abs(np.asarray(gradients, dtype=np.float64)).ravel()
    if np.isinf(sizes).any():
        raise ValueError("infinite")
    sizes = sizes[sizes > 0]
    if not sizes.size:
        return 1.0, 0.0
    _, exponent = math.frexp(largest / (2 * sizes.max()))
    scale = 2.0 ** (exponent - 1)
    rescued = (sizes <= smallest / 2) & (sizes * scale > smallest / 2)
    return scale, float(rescued.mean())
""",
        "always the half's limits": """
def loss_scale_for(gradients, largest, smallest):
    largest, smallest = 65504.0, 2.0**-24
    sizes = np.abs(np.asarray(gradients, dtype=np.float64)).ravel()
    if not np.isfinite(sizes).all():
        raise ValueError("not finite")
    sizes = sizes[sizes > 0]
    if not sizes.size:
        return 1.0, 0.0
    _, exponent = math.frexp(largest / (2 * sizes.max()))
    scale = 2.0 ** (exponent - 1)
    rescued = (sizes <= smallest / 2) & (sizes * scale > smallest / 2)
    return scale, float(rescued.mean())
""",
        "the most usual scale": """
def loss_scale_for(gradients, largest, smallest):
    sizes = np.abs(np.asarray(gradients, dtype=np.float64)).ravel()
    if not np.isfinite(sizes).all():
        raise ValueError("not finite")
    sizes = sizes[sizes > 0]
    if not sizes.size:
        return 1.0, 0.0
    scale = 1024.0
    rescued = (sizes <= smallest / 2) & (sizes * scale > smallest / 2)
    return scale, float(rescued.mean())
""",
        "nothing to scale: infinity": """
def loss_scale_for(gradients, largest, smallest):
    sizes = np.abs(np.asarray(gradients, dtype=np.float64)).ravel()
    if not np.isfinite(sizes).all():
        raise ValueError("not finite")
    sizes = sizes[sizes > 0]
    if not sizes.size:
        return math.inf, 0.0
    _, exponent = math.frexp(largest / (2 * sizes.max()))
    scale = 2.0 ** (exponent - 1)
    rescued = (sizes <= smallest / 2) & (sizes * scale > smallest / 2)
    return scale, float(rescued.mean())
""",
        "changes the gradients": """
def loss_scale_for(gradients, largest, smallest):
    if not np.isfinite(gradients).all():
        raise ValueError("not finite")
    np.abs(gradients, out=gradients)
    sizes = gradients[gradients > 0].astype(np.float64)
    if not sizes.size:
        return 1.0, 0.0
    _, exponent = math.frexp(largest / (2 * sizes.max()))
    scale = 2.0 ** (exponent - 1)
    rescued = (sizes <= smallest / 2) & (sizes * scale > smallest / 2)
    return scale, float(rescued.mean())
""",
    },
    "quantise_int8": {
        "one scale for all": """
def quantise_int8(weight):
    largest = np.abs(weight).max()
    scale = np.float32(largest / 127 if largest > 0 else 1)
    scales = np.full(len(weight), scale, np.float32)
    codes = np.rint(weight / scale).astype(np.int8)
    dead = ~weight.reshape(len(weight), -1).any(axis=1)
    bounds = np.where(dead, 0, scales / 2).astype(np.float32)
    return codes, scales, bounds
""",
        "a scale for each input channel": """
def quantise_int8(weight):
    channels = np.moveaxis(weight, 1, 0).reshape(weight.shape[1], -1)
    largest = np.abs(channels).max(axis=1)
    scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    by_input = scales.reshape(1, -1, *[1] * (weight.ndim - 2))
    codes = np.rint(weight / by_input).astype(np.int8)
    return codes, scales, np.where(largest > 0, scales / 2, 0).astype(np.float32)
""",
        "a scale for each row of a kernel": """
def quantise_int8(weight):
    largest = np.abs(weight).max(axis=-1, keepdims=True)
    steps = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    codes = np.rint(weight / steps).astype(np.int8)
    scales = steps.reshape(len(weight), -1)[:, 0]
    return codes, scales, np.where(codes.reshape(len(weight), -1).any(1), scales / 2, 0)
""",
        "truncates": """
def quantise_int8(weight):
    channels = weight.reshape(len(weight), -1)
    largest = np.abs(channels).max(axis=1)
    scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    codes = (channels / scales[:, np.newaxis] * (1 + 1e-6)).astype(np.int8)
    bounds = np.where(largest > 0, scales / 2, 0).astype(np.float32)
    return codes.reshape(weight.shape), scales, bounds
""",
        "rounds down": """
def quantise_int8(weight):
    channels = weight.reshape(len(weight), -1)
    largest = np.abs(channels).max(axis=1)
    scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    codes = np.floor(channels / scales[:, np.newaxis]).astype(np.int8)
    bounds = np.where(largest > 0, scales / 2, 0).astype(np.float32)
    return codes.reshape(weight.shape), scales, bounds
""",
        "128 steps, which wrap round": """
def quantise_int8(weight):
    channels = weight.reshape(len(weight), -1)
    largest = np.abs(channels).max(axis=1)
    scales = np.where(largest > 0, largest / 128, 1).astype(np.float32)
    codes = np.rint(channels / scales[:, np.newaxis]).astype(np.int32).astype(np.int8)
    bounds = np.where(largest > 0, scales / 2, 0).astype(np.float32)
    return codes.reshape(weight.shape), scales, bounds
""",
        "128 steps, -128 used": """
def quantise_int8(weight):
    channels = weight.reshape(len(weight), -1)
    largest = np.abs(channels).max(axis=1)
    scales = np.where(largest > 0, largest / 128, 1).astype(np.float32)
    codes = np.clip(np.rint(channels / scales[:, np.newaxis]), -128, 127).astype(np.int8)
    bounds = np.where(largest > 0, scales / 2, 0).astype(np.float32)
    return codes.reshape(weight.shape), scales, bounds
""",
        "255 steps for both signs": """
def quantise_int8(weight):
    channels = weight.reshape(len(weight), -1)
    largest = np.abs(channels).max(axis=1)
    scales = np.where(largest > 0, 2 * largest / 255, 1).astype(np.float32)
    codes = np.clip(np.rint(channels / scales[:, np.newaxis]), -127, 127).astype(np.int8)
    bounds = np.where(largest > 0, scales / 2, 0).astype(np.float32)
    return codes.reshape(weight.shape), scales, bounds
""",
        "divides by zero": """
def quantise_int8(weight):
    channels = weight.reshape(len(weight), -1)
    scales = (np.abs(channels).max(axis=1) / 127).astype(np.float32)
    with np.errstate(all="ignore"):
        codes = np.rint(channels / scales[:, np.newaxis]).astype(np.int8)
    return codes.reshape(weight.shape), scales, scales / 2
""",
        "a little added against zero": """
def quantise_int8(weight):
    channels = weight.reshape(len(weight), -1)
    scales = ((np.abs(channels).max(axis=1) + 1e-3) / 127).astype(np.float32)
    codes = np.rint(channels / scales[:, np.newaxis]).astype(np.int8)
    return codes.reshape(weight.shape), scales, scales / 2
""",
        "zeros have a bound": """
def quantise_int8(weight):
    channels = weight.reshape(len(weight), -1)
    largest = np.abs(channels).max(axis=1)
    scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    codes = np.rint(channels / scales[:, np.newaxis]).astype(np.int8)
    return codes.reshape(weight.shape), scales, scales / 2
""",
        "the largest, not the largest size": """
def quantise_int8(weight):
    channels = weight.reshape(len(weight), -1)
    largest = channels.max(axis=1)
    scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    codes = np.clip(np.rint(channels / scales[:, np.newaxis]), -127, 127).astype(np.int8)
    bounds = np.where(largest > 0, scales / 2, 0).astype(np.float32)
    return codes.reshape(weight.shape), scales, bounds
""",
        "a float64 that slips in": """
def quantise_int8(weight):
    channels = weight.reshape(len(weight), -1).astype(np.float64)
    largest = np.abs(channels).max(axis=1)
    scales = np.where(largest > 0, largest / 127, 1)
    codes = np.rint(channels / scales[:, np.newaxis]).astype(np.int8)
    bounds = np.where(largest > 0, scales / 2, 0)
    return codes.reshape(weight.shape), scales, bounds
""",
        "codes that stay floats": """
def quantise_int8(weight):
    channels = weight.reshape(len(weight), -1)
    largest = np.abs(channels).max(axis=1)
    scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    codes = np.rint(channels / scales[:, np.newaxis])
    bounds = np.where(largest > 0, scales / 2, 0).astype(np.float32)
    return codes.reshape(weight.shape), scales, bounds
""",
        "a whole step": """
def quantise_int8(weight):
    channels = weight.reshape(len(weight), -1)
    largest = np.abs(channels).max(axis=1)
    scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    codes = np.rint(channels / scales[:, np.newaxis]).astype(np.int8)
    bounds = np.where(largest > 0, scales, 0).astype(np.float32)
    return codes.reshape(weight.shape), scales, bounds
""",
        "the error itself, no bound": """
def quantise_int8(weight):
    channels = weight.reshape(len(weight), -1)
    largest = np.abs(channels).max(axis=1)
    scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    codes = np.rint(channels / scales[:, np.newaxis]).astype(np.int8)
    bounds = np.abs(channels - codes * scales[:, np.newaxis]).max(axis=1).astype(np.float32)
    return codes.reshape(weight.shape), scales, bounds
""",
        "one bound for all": """
def quantise_int8(weight):
    channels = weight.reshape(len(weight), -1)
    largest = np.abs(channels).max(axis=1)
    scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    codes = np.rint(channels / scales[:, np.newaxis]).astype(np.int8)
    bounds = np.full(len(weight), (largest / 254).max(), np.float32)
    return codes.reshape(weight.shape), scales, bounds
""",
        "steps a unit, not units a step": """
def quantise_int8(weight):
    channels = weight.reshape(len(weight), -1)
    largest = np.abs(channels).max(axis=1)
    scales = (127 / np.where(largest > 0, largest, 127)).astype(np.float32)
    codes = np.rint(channels * scales[:, np.newaxis]).astype(np.int8)
    bounds = np.where(largest > 0, 0.5 / scales, 0).astype(np.float32)
    return codes.reshape(weight.shape), scales, bounds
""",
        "forgets the shape": """
def quantise_int8(weight):
    channels = weight.reshape(len(weight), -1)
    largest = np.abs(channels).max(axis=1)
    scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    codes = np.rint(channels / scales[:, np.newaxis]).astype(np.int8)
    bounds = np.where(largest > 0, scales / 2, 0).astype(np.float32)
    return codes.ravel(), scales, bounds
""",
        "scales that keep their axes": """
def quantise_int8(weight):
    axes = tuple(range(1, weight.ndim))
    largest = np.abs(weight).max(axis=axes, keepdims=True)
    scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    codes = np.rint(weight / scales).astype(np.int8)
    return codes, scales, np.where(largest > 0, scales / 2, 0).astype(np.float32)
""",
        "divides the weight itself": """
def quantise_int8(weight):
    channels = weight.reshape(len(weight), -1)
    largest = np.abs(channels).max(axis=1)
    scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    channels /= scales[:, np.newaxis]
    codes = np.rint(channels).astype(np.int8)
    bounds = np.where(largest > 0, scales / 2, 0).astype(np.float32)
    return codes.reshape(weight.shape), scales, bounds
""",
        "codes from 0 to 255": """
def quantise_int8(weight):
    channels = weight.reshape(len(weight), -1)
    low, high = channels.min(axis=1), channels.max(axis=1)
    scales = np.where(high > low, (high - low) / 255, 1).astype(np.float32)
    codes = np.rint((channels - low[:, np.newaxis]) / scales[:, np.newaxis]).astype(np.uint8)
    bounds = np.where(high > low, scales / 2, 0).astype(np.float32)
    return codes.reshape(weight.shape), scales, bounds
""",
        "zero takes part in a range from low to high": """
def quantise_int8(weight):
    channels = weight.reshape(len(weight), -1)
    low, high = channels.min(axis=1), channels.max(axis=1)
    scales = np.where(high > low, (high - low) / 254, 1).astype(np.float32)
    middle = (high + low) / 2
    steps = (channels - middle[:, np.newaxis]) / scales[:, np.newaxis]
    codes = np.rint(steps).astype(np.int8)
    bounds = np.where(high > low, scales / 2, 0).astype(np.float32)
    return codes.reshape(weight.shape), scales, bounds
""",
    },
    "dots_of_bits": {
        "counts the rubbish": """
def dots_of_bits(a_bytes, b_bytes, length):
    differing = np.bitwise_count(a_bytes ^ b_bytes)
    return length - 2 * differing.sum(axis=1, dtype=np.int64)
""",
        "leaves out the last byte": """
def dots_of_bits(a_bytes, b_bytes, length):
    whole = length // 8
    differing = np.bitwise_count((a_bytes ^ b_bytes)[:, :whole])
    return length - 2 * differing.sum(axis=1, dtype=np.int64)
""",
        "whole bytes only": """
def dots_of_bits(a_bytes, b_bytes, length):
    size = -(-length // 8)
    differing = np.bitwise_count((a_bytes ^ b_bytes)[:, :size])
    return length - 2 * differing.sum(axis=1, dtype=np.int64)
""",
        "one place too many": """
def dots_of_bits(a_bytes, b_bytes, length):
    counts = np.packbits(np.arange(8 * a_bytes.shape[1]) <= length)
    differing = np.bitwise_count((a_bytes ^ b_bytes) & counts)
    return length - 2 * differing.sum(axis=1, dtype=np.int64)
""",
        "one place too few": """
def dots_of_bits(a_bytes, b_bytes, length):
    counts = np.packbits(np.arange(8 * a_bytes.shape[1]) < length - 1)
    differing = np.bitwise_count((a_bytes ^ b_bytes) & counts)
    return length - 2 * differing.sum(axis=1, dtype=np.int64)
""",
        "the first bit is the lowest": """
def dots_of_bits(a_bytes, b_bytes, length):
    counts = np.packbits(np.arange(8 * a_bytes.shape[1]) < length, bitorder="little")
    differing = np.bitwise_count((a_bytes ^ b_bytes) & counts)
    return length - 2 * differing.sum(axis=1, dtype=np.int64)
""",
        "the lowest bit first": """
def dots_of_bits(a_bytes, b_bytes, length):
    bits = np.unpackbits(a_bytes ^ b_bytes, axis=1, count=length, bitorder="little")
    return length - 2 * bits.sum(axis=1, dtype=np.int64)
""",
        "the number that agrees": """
def dots_of_bits(a_bytes, b_bytes, length):
    counts = np.packbits(np.arange(8 * a_bytes.shape[1]) < length)
    differing = np.bitwise_count((a_bytes ^ b_bytes) & counts)
    return length - differing.sum(axis=1, dtype=np.int64)
""",
        "twice what differs, without the length": """
def dots_of_bits(a_bytes, b_bytes, length):
    counts = np.packbits(np.arange(8 * a_bytes.shape[1]) < length)
    differing = np.bitwise_count((a_bytes ^ b_bytes) & counts)
    return -2 * differing.sum(axis=1, dtype=np.int64)
""",
        "the wrong sign": """
def dots_of_bits(a_bytes, b_bytes, length):
    counts = np.packbits(np.arange(8 * a_bytes.shape[1]) < length)
    differing = np.bitwise_count((a_bytes ^ b_bytes) & counts)
    return 2 * differing.sum(axis=1, dtype=np.int64) - length
""",
        "the length in bytes": """
def dots_of_bits(a_bytes, b_bytes, length):
    counts = np.packbits(np.arange(8 * a_bytes.shape[1]) < length)
    differing = np.bitwise_count((a_bytes ^ b_bytes) & counts)
    return 8 * a_bytes.shape[1] - 2 * differing.sum(axis=1, dtype=np.int64)
""",
        "an unsigned sum": """
def dots_of_bits(a_bytes, b_bytes, length):
    counts = np.packbits(np.arange(8 * a_bytes.shape[1]) < length)
    differing = np.bitwise_count((a_bytes ^ b_bytes) & counts)
    return length - 2 * differing.sum(axis=1)
""",
        "a sum in eight bits": """
def dots_of_bits(a_bytes, b_bytes, length):
    counts = np.packbits(np.arange(8 * a_bytes.shape[1]) < length)
    differing = np.bitwise_count((a_bytes ^ b_bytes) & counts)
    return length - 2 * differing.sum(axis=1, dtype=np.uint8).astype(np.int64)
""",
        "XNOR, and the rest of the byte agrees": """
def dots_of_bits(a_bytes, b_bytes, length):
    counts = np.packbits(np.arange(8 * a_bytes.shape[1]) < length)
    agreeing = np.bitwise_count(~((a_bytes ^ b_bytes) & counts))
    return 2 * agreeing.sum(axis=1, dtype=np.int64) - length
""",
        "AND where XOR belongs": """
def dots_of_bits(a_bytes, b_bytes, length):
    counts = np.packbits(np.arange(8 * a_bytes.shape[1]) < length)
    differing = np.bitwise_count((a_bytes & b_bytes) & counts)
    return length - 2 * differing.sum(axis=1, dtype=np.int64)
""",
        "bits as 0 and 1": """
def dots_of_bits(a_bytes, b_bytes, length):
    a, b = (np.unpackbits(each, axis=1, count=length) for each in (a_bytes, b_bytes))
    return (a * b).sum(axis=1, dtype=np.int64)
""",
        "all rows in one": """
def dots_of_bits(a_bytes, b_bytes, length):
    counts = np.packbits(np.arange(8 * a_bytes.shape[1]) < length)
    differing = np.bitwise_count((a_bytes ^ b_bytes) & counts)
    return length - 2 * differing.sum(dtype=np.int64)
""",
        "along the wrong axis": """
def dots_of_bits(a_bytes, b_bytes, length):
    counts = np.packbits(np.arange(8 * a_bytes.shape[1]) < length)
    differing = np.bitwise_count((a_bytes ^ b_bytes) & counts)
    return length - 2 * differing.sum(axis=0, dtype=np.int64)
""",
        "every row with every row": """
def dots_of_bits(a_bytes, b_bytes, length):
    a, b = (2 * np.unpackbits(r, axis=1, count=length).astype(int) - 1 for r in (a_bytes, b_bytes))
    return a @ b.T
""",
        "a float": """
def dots_of_bits(a_bytes, b_bytes, length):
    counts = np.packbits(np.arange(8 * a_bytes.shape[1]) < length)
    differing = np.bitwise_count((a_bytes ^ b_bytes) & counts)
    return length - 2 * differing.sum(axis=1, dtype=np.float64)
""",
        "works in the rows themselves": """
def dots_of_bits(a_bytes, b_bytes, length):
    counts = np.packbits(np.arange(8 * a_bytes.shape[1]) < length)
    a_bytes ^= b_bytes
    differing = np.bitwise_count(a_bytes & counts)
    return length - 2 * differing.sum(axis=1, dtype=np.int64)
""",
    },
    "pack_for_xnor": {
        "both filled up with zeros": """
def pack_for_xnor(a, b):
    def words_of(x, filler):
        around = [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % 64)]
        bits = np.pad(x >= 0, around, constant_values=filler)
        return np.packbits(bits, axis=-1).view(">u8").astype(np.uint64)

    return words_of(a, False), words_of(b, False)
""",
        "both filled up with ones": """
def pack_for_xnor(a, b):
    def words_of(x, filler):
        around = [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % 64)]
        bits = np.pad(x >= 0, around, constant_values=filler)
        return np.packbits(bits, axis=-1).view(">u8").astype(np.uint64)

    return words_of(a, True), words_of(b, True)
""",
        "the fillings exchanged": """
def pack_for_xnor(a, b):
    def words_of(x, filler):
        around = [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % 64)]
        bits = np.pad(x >= 0, around, constant_values=filler)
        return np.packbits(bits, axis=-1).view(">u8").astype(np.uint64)

    return words_of(a, True), words_of(b, False)
""",
        "b turned around as a whole": """
def pack_for_xnor(a, b):
    def words_of(x, filler):
        around = [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % 64)]
        bits = np.pad(x >= 0, around, constant_values=filler)
        return np.packbits(bits, axis=-1).view(">u8").astype(np.uint64)

    return words_of(a, False), ~words_of(b, False)
""",
        "sign(0) is -1": """
def pack_for_xnor(a, b):
    def words_of(x, filler):
        around = [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % 64)]
        bits = np.pad(x > 0, around, constant_values=filler)
        return np.packbits(bits, axis=-1).view(">u8").astype(np.uint64)

    return words_of(a, False), words_of(b, True)
""",
        "1 for what is negative": """
def pack_for_xnor(a, b):
    def words_of(x, filler):
        around = [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % 64)]
        bits = np.pad(x < 0, around, constant_values=filler)
        return np.packbits(bits, axis=-1).view(">u8").astype(np.uint64)

    return words_of(a, False), words_of(b, True)
""",
        "NumPy's sign": """
def pack_for_xnor(a, b):
    def words_of(x, filler):
        around = [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % 64)]
        bits = np.pad(np.sign(x).astype(bool), around, constant_values=filler)
        return np.packbits(bits, axis=-1).view(">u8").astype(np.uint64)

    return words_of(a, False), words_of(b, True)
""",
        "always one more word": """
def pack_for_xnor(a, b):
    def words_of(x, filler):
        around = [(0, 0)] * (x.ndim - 1) + [(0, 64 - x.shape[-1] % 64)]
        bits = np.pad(x >= 0, around, constant_values=filler)
        return np.packbits(bits, axis=-1).view(">u8").astype(np.uint64)

    return words_of(a, False), words_of(b, True)
""",
        "filled up to bytes of 8, zeros behind": """
def pack_for_xnor(a, b):
    def words_of(x, filler):
        around = [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % 8)]
        bits = np.pad(x >= 0, around, constant_values=filler)
        packed = np.packbits(bits, axis=-1)
        packed = np.pad(packed, [*around[:-1], (0, -packed.shape[-1] % 8)])
        return packed.view(">u8").astype(np.uint64)

    return words_of(a, False), words_of(b, True)
""",
        "bytes the wrong way round": """
def pack_for_xnor(a, b):
    def words_of(x, filler):
        around = [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % 64)]
        bits = np.pad(x >= 0, around, constant_values=filler)
        return np.packbits(bits, axis=-1).view("<u8").astype(np.uint64)

    return words_of(a, False), words_of(b, True)
""",
        "the lowest bit first": """
def pack_for_xnor(a, b):
    def words_of(x, filler):
        around = [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % 64)]
        bits = np.pad(x >= 0, around, constant_values=filler)
        return np.packbits(bits, axis=-1, bitorder="little").view("<u8").astype(np.uint64)

    return words_of(a, False), words_of(b, True)
""",
        "the library's order of bits": """
def pack_for_xnor(a, b):
    def words_of(x, filler):
        around = [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % 64)]
        bits = np.pad(x >= 0, around, constant_values=filler)
        return np.packbits(bits, axis=-1, bitorder="little").view(">u8").astype(np.uint64)

    return words_of(a, False), words_of(b, True)
""",
        "bytes, not words": """
def pack_for_xnor(a, b):
    def words_of(x, filler):
        around = [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % 64)]
        bits = np.pad(x >= 0, around, constant_values=filler)
        return np.packbits(bits, axis=-1)

    return words_of(a, False), words_of(b, True)
""",
        "signed words": """
def pack_for_xnor(a, b):
    def words_of(x, filler):
        around = [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % 64)]
        bits = np.pad(x >= 0, around, constant_values=filler)
        return np.packbits(bits, axis=-1).view(">u8").astype(np.int64)

    return words_of(a, False), words_of(b, True)
""",
        "big-endian words": """
def pack_for_xnor(a, b):
    def words_of(x, filler):
        around = [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % 64)]
        bits = np.pad(x >= 0, around, constant_values=filler)
        return np.packbits(bits, axis=-1).view(">u8")

    return words_of(a, False), words_of(b, True)
""",
        "words of 32 bits": """
def pack_for_xnor(a, b):
    def words_of(x, filler):
        around = [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % 32)]
        bits = np.pad(x >= 0, around, constant_values=filler)
        return np.packbits(bits, axis=-1).view(">u4").astype(np.uint64)

    return words_of(a, False), words_of(b, True)
""",
        "padding in front": """
def pack_for_xnor(a, b):
    def words_of(x, filler):
        around = [(0, 0)] * (x.ndim - 1) + [(-x.shape[-1] % 64, 0)]
        bits = np.pad(x >= 0, around, constant_values=filler)
        return np.packbits(bits, axis=-1).view(">u8").astype(np.uint64)

    return words_of(a, False), words_of(b, True)
""",
        "pads every axis": """
def pack_for_xnor(a, b):
    def words_of(x, filler):
        around = [(0, -size % 64) for size in x.shape]
        bits = np.pad(x >= 0, around, constant_values=filler)
        return np.packbits(bits, axis=-1).view(">u8").astype(np.uint64)

    return words_of(a, False), words_of(b, True)
""",
        "along the first axis": """
def pack_for_xnor(a, b):
    def words_of(x, filler):
        around = [(0, -x.shape[0] % 64)] + [(0, 0)] * (x.ndim - 1)
        bits = np.pad(x >= 0, around, constant_values=filler)
        packed = np.packbits(bits, axis=0)
        return np.ascontiguousarray(packed.T).view(">u8").astype(np.uint64)

    return words_of(a, False), words_of(b, True)
""",
        "all rows in one": """
def pack_for_xnor(a, b):
    def words_of(x, filler):
        around = (0, -x.size % 64)
        bits = np.pad(x.ravel() >= 0, around, constant_values=filler)
        return np.packbits(bits, axis=-1).view(">u8").astype(np.uint64)

    return words_of(a, False), words_of(b, True)
""",
        "rows of two axes only": """
def pack_for_xnor(a, b):
    def words_of(x, filler):
        rows = x.reshape(-1, x.shape[-1])
        bits = np.pad(rows >= 0, ((0, 0), (0, -x.shape[-1] % 64)), constant_values=filler)
        return np.packbits(bits, axis=-1).view(">u8").astype(np.uint64)

    return words_of(a, False), words_of(b, True)
""",
        "float sums of powers of two": """
def pack_for_xnor(a, b):
    def words_of(x, filler):
        around = [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % 64)]
        bits = np.pad(x >= 0, around, constant_values=filler)
        weights = 2.0 ** np.arange(63, -1, -1)
        return (bits.reshape(*bits.shape[:-1], -1, 64) @ weights).astype(np.uint64)

    return words_of(a, False), words_of(b, True)
""",
        "filled up with what becomes +1": """
def pack_for_xnor(a, b):
    def words_of(x, filler):
        around = [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % 64)]
        bits = np.pad(x, around) >= 0
        return np.packbits(bits, axis=-1).view(">u8").astype(np.uint64)

    return words_of(a, False), words_of(b, True)
""",
    },
    "fold_threshold": {
        "forgets the direction": """
def fold_threshold(gamma, beta, mean, variance, eps, length):
    gamma, beta, mean, variance = (np.float64(each) for each in (gamma, beta, mean, variance))
    divisor = np.where(gamma == 0, 1.0, gamma)
    edge = mean - beta * np.sqrt(variance + eps) / divisor
    thresholds = np.where(gamma < 0, np.floor(edge), np.ceil(edge))
    always = np.where(beta >= 0, -length, length + 1)
    thresholds = np.where(gamma == 0, always, np.clip(thresholds, -length - 1, length + 1))
    return thresholds.astype(np.int32), np.ones(gamma.shape, np.int32)
""",
        "always rounds up": """
def fold_threshold(gamma, beta, mean, variance, eps, length):
    gamma, beta, mean, variance = (np.float64(each) for each in (gamma, beta, mean, variance))
    divisor = np.where(gamma == 0, 1.0, gamma)
    edge = mean - beta * np.sqrt(variance + eps) / divisor
    thresholds = np.ceil(edge)
    always = np.where(beta >= 0, -length, length + 1)
    thresholds = np.where(gamma == 0, always, np.clip(thresholds, -length - 1, length + 1))
    return thresholds.astype(np.int32), np.where(gamma < 0, -1, 1).astype(np.int32)
""",
        "always rounds down": """
def fold_threshold(gamma, beta, mean, variance, eps, length):
    gamma, beta, mean, variance = (np.float64(each) for each in (gamma, beta, mean, variance))
    divisor = np.where(gamma == 0, 1.0, gamma)
    edge = mean - beta * np.sqrt(variance + eps) / divisor
    thresholds = np.floor(edge)
    always = np.where(beta >= 0, -length, length + 1)
    thresholds = np.where(gamma == 0, always, np.clip(thresholds, -length - 1, length + 1))
    return thresholds.astype(np.int32), np.where(gamma < 0, -1, 1).astype(np.int32)
""",
        "rounds to nearest": """
def fold_threshold(gamma, beta, mean, variance, eps, length):
    gamma, beta, mean, variance = (np.float64(each) for each in (gamma, beta, mean, variance))
    divisor = np.where(gamma == 0, 1.0, gamma)
    edge = mean - beta * np.sqrt(variance + eps) / divisor
    thresholds = np.rint(edge)
    always = np.where(beta >= 0, -length, length + 1)
    thresholds = np.where(gamma == 0, always, np.clip(thresholds, -length - 1, length + 1))
    return thresholds.astype(np.int32), np.where(gamma < 0, -1, 1).astype(np.int32)
""",
        "cuts the decimals off": """
def fold_threshold(gamma, beta, mean, variance, eps, length):
    gamma, beta, mean, variance = (np.float64(each) for each in (gamma, beta, mean, variance))
    divisor = np.where(gamma == 0, 1.0, gamma)
    edge = mean - beta * np.sqrt(variance + eps) / divisor
    thresholds = np.trunc(edge)
    always = np.where(beta >= 0, -length, length + 1)
    thresholds = np.where(gamma == 0, always, np.clip(thresholds, -length - 1, length + 1))
    return thresholds.astype(np.int32), np.where(gamma < 0, -1, 1).astype(np.int32)
""",
        "the edge itself is -1": """
def fold_threshold(gamma, beta, mean, variance, eps, length):
    gamma, beta, mean, variance = (np.float64(each) for each in (gamma, beta, mean, variance))
    divisor = np.where(gamma == 0, 1.0, gamma)
    edge = mean - beta * np.sqrt(variance + eps) / divisor
    thresholds = np.where(gamma < 0, np.ceil(edge) - 1, np.floor(edge) + 1)
    always = np.where(beta >= 0, -length, length + 1)
    thresholds = np.where(gamma == 0, always, np.clip(thresholds, -length - 1, length + 1))
    return thresholds.astype(np.int32), np.where(gamma < 0, -1, 1).astype(np.int32)
""",
        "forgets eps": """
def fold_threshold(gamma, beta, mean, variance, eps, length):
    gamma, beta, mean, variance = (np.float64(each) for each in (gamma, beta, mean, variance))
    divisor = np.where(gamma == 0, 1.0, gamma)
    edge = mean - beta * np.sqrt(variance) / divisor
    thresholds = np.where(gamma < 0, np.floor(edge), np.ceil(edge))
    always = np.where(beta >= 0, -length, length + 1)
    thresholds = np.where(gamma == 0, always, np.clip(thresholds, -length - 1, length + 1))
    return thresholds.astype(np.int32), np.where(gamma < 0, -1, 1).astype(np.int32)
""",
        "eps outside the root": """
def fold_threshold(gamma, beta, mean, variance, eps, length):
    gamma, beta, mean, variance = (np.float64(each) for each in (gamma, beta, mean, variance))
    divisor = np.where(gamma == 0, 1.0, gamma)
    edge = mean - beta * (np.sqrt(variance) + eps) / divisor
    thresholds = np.where(gamma < 0, np.floor(edge), np.ceil(edge))
    always = np.where(beta >= 0, -length, length + 1)
    thresholds = np.where(gamma == 0, always, np.clip(thresholds, -length - 1, length + 1))
    return thresholds.astype(np.int32), np.where(gamma < 0, -1, 1).astype(np.int32)
""",
        "the variance, not its root": """
def fold_threshold(gamma, beta, mean, variance, eps, length):
    gamma, beta, mean, variance = (np.float64(each) for each in (gamma, beta, mean, variance))
    divisor = np.where(gamma == 0, 1.0, gamma)
    edge = mean - beta * (variance + eps) / divisor
    thresholds = np.where(gamma < 0, np.floor(edge), np.ceil(edge))
    always = np.where(beta >= 0, -length, length + 1)
    thresholds = np.where(gamma == 0, always, np.clip(thresholds, -length - 1, length + 1))
    return thresholds.astype(np.int32), np.where(gamma < 0, -1, 1).astype(np.int32)
""",
        "divides by the root": """
def fold_threshold(gamma, beta, mean, variance, eps, length):
    gamma, beta, mean, variance = (np.float64(each) for each in (gamma, beta, mean, variance))
    divisor = np.where(gamma == 0, 1.0, gamma)
    edge = mean - beta / (np.sqrt(variance + eps) * divisor)
    thresholds = np.where(gamma < 0, np.floor(edge), np.ceil(edge))
    always = np.where(beta >= 0, -length, length + 1)
    thresholds = np.where(gamma == 0, always, np.clip(thresholds, -length - 1, length + 1))
    return thresholds.astype(np.int32), np.where(gamma < 0, -1, 1).astype(np.int32)
""",
        "forgets gamma": """
def fold_threshold(gamma, beta, mean, variance, eps, length):
    gamma, beta, mean, variance = (np.float64(each) for each in (gamma, beta, mean, variance))
    edge = mean - beta * np.sqrt(variance + eps)
    thresholds = np.where(gamma < 0, np.floor(edge), np.ceil(edge))
    always = np.where(beta >= 0, -length, length + 1)
    thresholds = np.where(gamma == 0, always, np.clip(thresholds, -length - 1, length + 1))
    return thresholds.astype(np.int32), np.where(gamma < 0, -1, 1).astype(np.int32)
""",
        "the size of gamma": """
def fold_threshold(gamma, beta, mean, variance, eps, length):
    gamma, beta, mean, variance = (np.float64(each) for each in (gamma, beta, mean, variance))
    divisor = np.where(gamma == 0, 1.0, gamma)
    edge = mean - beta * np.sqrt(variance + eps) / np.abs(divisor)
    thresholds = np.where(gamma < 0, np.floor(edge), np.ceil(edge))
    always = np.where(beta >= 0, -length, length + 1)
    thresholds = np.where(gamma == 0, always, np.clip(thresholds, -length - 1, length + 1))
    return thresholds.astype(np.int32), np.where(gamma < 0, -1, 1).astype(np.int32)
""",
        "the wrong sign of beta": """
def fold_threshold(gamma, beta, mean, variance, eps, length):
    gamma, beta, mean, variance = (np.float64(each) for each in (gamma, beta, mean, variance))
    divisor = np.where(gamma == 0, 1.0, gamma)
    edge = mean + beta * np.sqrt(variance + eps) / divisor
    thresholds = np.where(gamma < 0, np.floor(edge), np.ceil(edge))
    always = np.where(beta >= 0, -length, length + 1)
    thresholds = np.where(gamma == 0, always, np.clip(thresholds, -length - 1, length + 1))
    return thresholds.astype(np.int32), np.where(gamma < 0, -1, 1).astype(np.int32)
""",
        "the wrong sign of the mean": """
def fold_threshold(gamma, beta, mean, variance, eps, length):
    gamma, beta, mean, variance = (np.float64(each) for each in (gamma, beta, mean, variance))
    divisor = np.where(gamma == 0, 1.0, gamma)
    edge = -mean - beta * np.sqrt(variance + eps) / divisor
    thresholds = np.where(gamma < 0, np.floor(edge), np.ceil(edge))
    always = np.where(beta >= 0, -length, length + 1)
    thresholds = np.where(gamma == 0, always, np.clip(thresholds, -length - 1, length + 1))
    return thresholds.astype(np.int32), np.where(gamma < 0, -1, 1).astype(np.int32)
""",
        "forgets the mean": """
def fold_threshold(gamma, beta, mean, variance, eps, length):
    gamma, beta, mean, variance = (np.float64(each) for each in (gamma, beta, mean, variance))
    divisor = np.where(gamma == 0, 1.0, gamma)
    edge = -beta * np.sqrt(variance + eps) / divisor
    thresholds = np.where(gamma < 0, np.floor(edge), np.ceil(edge))
    always = np.where(beta >= 0, -length, length + 1)
    thresholds = np.where(gamma == 0, always, np.clip(thresholds, -length - 1, length + 1))
    return thresholds.astype(np.int32), np.where(gamma < 0, -1, 1).astype(np.int32)
""",
        "gamma 0 is never +1": """
def fold_threshold(gamma, beta, mean, variance, eps, length):
    gamma, beta, mean, variance = (np.float64(each) for each in (gamma, beta, mean, variance))
    divisor = np.where(gamma == 0, 1.0, gamma)
    edge = mean - beta * np.sqrt(variance + eps) / divisor
    thresholds = np.where(gamma < 0, np.floor(edge), np.ceil(edge))
    always = length + 1
    thresholds = np.where(gamma == 0, always, np.clip(thresholds, -length - 1, length + 1))
    return thresholds.astype(np.int32), np.where(gamma < 0, -1, 1).astype(np.int32)
""",
        "gamma 0 is always +1": """
def fold_threshold(gamma, beta, mean, variance, eps, length):
    gamma, beta, mean, variance = (np.float64(each) for each in (gamma, beta, mean, variance))
    divisor = np.where(gamma == 0, 1.0, gamma)
    edge = mean - beta * np.sqrt(variance + eps) / divisor
    thresholds = np.where(gamma < 0, np.floor(edge), np.ceil(edge))
    always = -length
    thresholds = np.where(gamma == 0, always, np.clip(thresholds, -length - 1, length + 1))
    return thresholds.astype(np.int32), np.where(gamma < 0, -1, 1).astype(np.int32)
""",
        "beta 0 counts as -1": """
def fold_threshold(gamma, beta, mean, variance, eps, length):
    gamma, beta, mean, variance = (np.float64(each) for each in (gamma, beta, mean, variance))
    divisor = np.where(gamma == 0, 1.0, gamma)
    edge = mean - beta * np.sqrt(variance + eps) / divisor
    thresholds = np.where(gamma < 0, np.floor(edge), np.ceil(edge))
    always = np.where(beta > 0, -length, length + 1)
    thresholds = np.where(gamma == 0, always, np.clip(thresholds, -length - 1, length + 1))
    return thresholds.astype(np.int32), np.where(gamma < 0, -1, 1).astype(np.int32)
""",
        "gamma 0 taken for a small one": """
def fold_threshold(gamma, beta, mean, variance, eps, length):
    gamma, beta, mean, variance = (np.float64(each) for each in (gamma, beta, mean, variance))
    divisor = np.where(gamma == 0, 1e-12, gamma)
    edge = mean - beta * np.sqrt(variance + eps) / divisor
    thresholds = np.where(gamma < 0, np.floor(edge), np.ceil(edge))
    thresholds = np.clip(thresholds, -length - 1, length + 1)
    return thresholds.astype(np.int32), np.where(gamma < 0, -1, 1).astype(np.int32)
""",
        "gamma 0 divided by": """
def fold_threshold(gamma, beta, mean, variance, eps, length):
    gamma, beta, mean, variance = (np.float64(each) for each in (gamma, beta, mean, variance))
    edge = mean - beta * np.sqrt(variance + eps) / gamma
    thresholds = np.where(gamma < 0, np.floor(edge), np.ceil(edge))
    thresholds = np.clip(np.nan_to_num(thresholds), -length - 1, length + 1)
    return thresholds.astype(np.int32), np.where(gamma < 0, -1, 1).astype(np.int32)
""",
        "gamma 0 turns the direction": """
def fold_threshold(gamma, beta, mean, variance, eps, length):
    gamma, beta, mean, variance = (np.float64(each) for each in (gamma, beta, mean, variance))
    divisor = np.where(gamma == 0, 1.0, gamma)
    edge = mean - beta * np.sqrt(variance + eps) / divisor
    thresholds = np.where(gamma < 0, np.floor(edge), np.ceil(edge))
    always = np.where(beta >= 0, -length, length + 1)
    thresholds = np.where(gamma == 0, always, np.clip(thresholds, -length - 1, length + 1))
    return thresholds.astype(np.int32), np.where(gamma <= 0, -1, 1).astype(np.int32)
""",
        "beta against the mean where gamma is 0": """
def fold_threshold(gamma, beta, mean, variance, eps, length):
    gamma, beta, mean, variance = (np.float64(each) for each in (gamma, beta, mean, variance))
    divisor = np.where(gamma == 0, 1.0, gamma)
    edge = mean - beta * np.sqrt(variance + eps) / divisor
    thresholds = np.where(gamma < 0, np.floor(edge), np.ceil(edge))
    always = np.where(beta >= mean, -length, length + 1)
    thresholds = np.where(gamma == 0, always, np.clip(thresholds, -length - 1, length + 1))
    return thresholds.astype(np.int32), np.where(gamma < 0, -1, 1).astype(np.int32)
""",
        "the length itself means never": """
def fold_threshold(gamma, beta, mean, variance, eps, length):
    gamma, beta, mean, variance = (np.float64(each) for each in (gamma, beta, mean, variance))
    divisor = np.where(gamma == 0, 1.0, gamma)
    edge = mean - beta * np.sqrt(variance + eps) / divisor
    thresholds = np.where(gamma < 0, np.floor(edge), np.ceil(edge))
    always = np.where(beta >= 0, -length, length)
    thresholds = np.where(gamma == 0, always, np.clip(thresholds, -length - 1, length + 1))
    return thresholds.astype(np.int32), np.where(gamma < 0, -1, 1).astype(np.int32)
""",
        "cut to the length": """
def fold_threshold(gamma, beta, mean, variance, eps, length):
    gamma, beta, mean, variance = (np.float64(each) for each in (gamma, beta, mean, variance))
    divisor = np.where(gamma == 0, 1.0, gamma)
    edge = mean - beta * np.sqrt(variance + eps) / divisor
    thresholds = np.where(gamma < 0, np.floor(edge), np.ceil(edge))
    always = np.where(beta >= 0, -length, length + 1)
    thresholds = np.where(gamma == 0, always, np.clip(thresholds, -length, length))
    return thresholds.astype(np.int32), np.where(gamma < 0, -1, 1).astype(np.int32)
""",
        "no bounds": """
def fold_threshold(gamma, beta, mean, variance, eps, length):
    gamma, beta, mean, variance = (np.float64(each) for each in (gamma, beta, mean, variance))
    divisor = np.where(gamma == 0, 1.0, gamma)
    edge = mean - beta * np.sqrt(variance + eps) / divisor
    thresholds = np.where(gamma < 0, np.floor(edge), np.ceil(edge))
    always = np.where(beta >= 0, -length, length + 1)
    thresholds = np.where(gamma == 0, always, thresholds)
    return thresholds.astype(np.int32), np.where(gamma < 0, -1, 1).astype(np.int32)
""",
        "bounds of 16 bits": """
def fold_threshold(gamma, beta, mean, variance, eps, length):
    gamma, beta, mean, variance = (np.float64(each) for each in (gamma, beta, mean, variance))
    divisor = np.where(gamma == 0, 1.0, gamma)
    edge = mean - beta * np.sqrt(variance + eps) / divisor
    thresholds = np.where(gamma < 0, np.floor(edge), np.ceil(edge))
    always = np.where(beta >= 0, -length, length + 1)
    thresholds = np.where(gamma == 0, always, np.clip(thresholds, -(2**15), 2**15))
    return thresholds.astype(np.int32), np.where(gamma < 0, -1, 1).astype(np.int32)
""",
        "thresholds that stay floats": """
def fold_threshold(gamma, beta, mean, variance, eps, length):
    gamma, beta, mean, variance = (np.float64(each) for each in (gamma, beta, mean, variance))
    divisor = np.where(gamma == 0, 1.0, gamma)
    edge = mean - beta * np.sqrt(variance + eps) / divisor
    thresholds = np.where(gamma < 0, np.floor(edge), np.ceil(edge))
    always = np.where(beta >= 0, -length, length + 1)
    thresholds = np.where(gamma == 0, always, np.clip(thresholds, -length - 1, length + 1))
    return thresholds, np.where(gamma < 0, -1, 1).astype(np.int32)
""",
        "direction by beta": """
def fold_threshold(gamma, beta, mean, variance, eps, length):
    gamma, beta, mean, variance = (np.float64(each) for each in (gamma, beta, mean, variance))
    divisor = np.where(gamma == 0, 1.0, gamma)
    edge = mean - beta * np.sqrt(variance + eps) / divisor
    thresholds = np.where(gamma < 0, np.floor(edge), np.ceil(edge))
    always = np.where(beta >= 0, -length, length + 1)
    thresholds = np.where(gamma == 0, always, np.clip(thresholds, -length - 1, length + 1))
    return thresholds.astype(np.int32), np.where(beta < 0, -1, 1).astype(np.int32)
""",
        "directions 0 and 1": """
def fold_threshold(gamma, beta, mean, variance, eps, length):
    gamma, beta, mean, variance = (np.float64(each) for each in (gamma, beta, mean, variance))
    divisor = np.where(gamma == 0, 1.0, gamma)
    edge = mean - beta * np.sqrt(variance + eps) / divisor
    thresholds = np.where(gamma < 0, np.floor(edge), np.ceil(edge))
    always = np.where(beta >= 0, -length, length + 1)
    thresholds = np.where(gamma == 0, always, np.clip(thresholds, -length - 1, length + 1))
    return thresholds.astype(np.int32), np.where(gamma < 0, 0, 1).astype(np.int32)
""",
        "thresholds between the possible sums, all rounded up": """
def fold_threshold(gamma, beta, mean, variance, eps, length):
    gamma, beta, mean, variance = (np.float64(each) for each in (gamma, beta, mean, variance))
    divisor = np.where(gamma == 0, 1.0, gamma)
    edge = mean - beta * np.sqrt(variance + eps) / divisor
    thresholds = 2 * np.ceil(edge / 2)
    always = np.where(beta >= 0, -length, length + 1)
    thresholds = np.where(gamma == 0, always, np.clip(thresholds, -length - 1, length + 1))
    return thresholds.astype(np.int32), np.where(gamma < 0, -1, 1).astype(np.int32)
""",
        "the first unit's gamma for all": """
def fold_threshold(gamma, beta, mean, variance, eps, length):
    gamma, beta, mean, variance = (np.float64(each) for each in (gamma, beta, mean, variance))
    divisor = np.where(gamma == 0, 1.0, gamma)
    edge = mean - beta * np.sqrt(variance + eps) / divisor
    thresholds = np.where(gamma < 0, np.floor(edge), np.ceil(edge))
    always = np.where(beta >= 0, -length, length + 1)
    thresholds = np.where(gamma == 0, always, np.clip(thresholds, -length - 1, length + 1))
    return thresholds.astype(np.int32), np.full(gamma.shape, -1 if gamma[0] < 0 else 1, np.int32)
""",
    },
    "binary_linear": {
        "NumPy's sign of x": """
def binary_linear(x, weight, grad_out, reach):
    x_signs = np.sign(x)
    w_signs = np.where(weight >= 0, np.float32(1), np.float32(-1))
    y = x_signs @ w_signs.T
    grad_x = (grad_out @ w_signs) * (np.abs(x) <= reach)
    grad_weight = (grad_out.T @ x_signs) * (np.abs(weight) <= reach)
    return y, grad_x, grad_weight
""",
        "NumPy's sign of the weights": """
def binary_linear(x, weight, grad_out, reach):
    x_signs = np.where(x >= 0, np.float32(1), np.float32(-1))
    w_signs = np.sign(weight)
    y = x_signs @ w_signs.T
    grad_x = (grad_out @ w_signs) * (np.abs(x) <= reach)
    grad_weight = (grad_out.T @ x_signs) * (np.abs(weight) <= reach)
    return y, grad_x, grad_weight
""",
        "sign(0) is -1": """
def binary_linear(x, weight, grad_out, reach):
    x_signs = np.where(x > 0, np.float32(1), np.float32(-1))
    w_signs = np.where(weight > 0, np.float32(1), np.float32(-1))
    y = x_signs @ w_signs.T
    grad_x = (grad_out @ w_signs) * (np.abs(x) <= reach)
    grad_weight = (grad_out.T @ x_signs) * (np.abs(weight) <= reach)
    return y, grad_x, grad_weight
""",
        "the sign bit: -0.0 is -1": """
def binary_linear(x, weight, grad_out, reach):
    x_signs = np.copysign(np.float32(1), x)
    w_signs = np.copysign(np.float32(1), weight)
    y = x_signs @ w_signs.T
    grad_x = (grad_out @ w_signs) * (np.abs(x) <= reach)
    grad_weight = (grad_out.T @ x_signs) * (np.abs(weight) <= reach)
    return y, grad_x, grad_weight
""",
        "y by the latent weights": """
def binary_linear(x, weight, grad_out, reach):
    x_signs = np.where(x >= 0, np.float32(1), np.float32(-1))
    w_signs = np.where(weight >= 0, np.float32(1), np.float32(-1))
    y = x_signs @ weight.T
    grad_x = (grad_out @ w_signs) * (np.abs(x) <= reach)
    grad_weight = (grad_out.T @ x_signs) * (np.abs(weight) <= reach)
    return y, grad_x, grad_weight
""",
        "y by x itself": """
def binary_linear(x, weight, grad_out, reach):
    x_signs = np.where(x >= 0, np.float32(1), np.float32(-1))
    w_signs = np.where(weight >= 0, np.float32(1), np.float32(-1))
    y = x @ w_signs.T
    grad_x = (grad_out @ w_signs) * (np.abs(x) <= reach)
    grad_weight = (grad_out.T @ x_signs) * (np.abs(weight) <= reach)
    return y, grad_x, grad_weight
""",
        "grad_x through the latent weights": """
def binary_linear(x, weight, grad_out, reach):
    x_signs = np.where(x >= 0, np.float32(1), np.float32(-1))
    w_signs = np.where(weight >= 0, np.float32(1), np.float32(-1))
    y = x_signs @ w_signs.T
    grad_x = (grad_out @ weight) * (np.abs(x) <= reach)
    grad_weight = (grad_out.T @ x_signs) * (np.abs(weight) <= reach)
    return y, grad_x, grad_weight
""",
        "grad_weight by x itself": """
def binary_linear(x, weight, grad_out, reach):
    x_signs = np.where(x >= 0, np.float32(1), np.float32(-1))
    w_signs = np.where(weight >= 0, np.float32(1), np.float32(-1))
    y = x_signs @ w_signs.T
    grad_x = (grad_out @ w_signs) * (np.abs(x) <= reach)
    grad_weight = (grad_out.T @ x) * (np.abs(weight) <= reach)
    return y, grad_x, grad_weight
""",
        "the true gradient": """
def binary_linear(x, weight, grad_out, reach):
    x_signs = np.where(x >= 0, np.float32(1), np.float32(-1))
    w_signs = np.where(weight >= 0, np.float32(1), np.float32(-1))
    y = x_signs @ w_signs.T
    grad_x = np.zeros_like(x)
    grad_weight = np.zeros_like(weight)
    return y, grad_x, grad_weight
""",
        "nothing is stopped": """
def binary_linear(x, weight, grad_out, reach):
    x_signs = np.where(x >= 0, np.float32(1), np.float32(-1))
    w_signs = np.where(weight >= 0, np.float32(1), np.float32(-1))
    y = x_signs @ w_signs.T
    grad_x = (grad_out @ w_signs)
    grad_weight = (grad_out.T @ x_signs)
    return y, grad_x, grad_weight
""",
        "x is not stopped": """
def binary_linear(x, weight, grad_out, reach):
    x_signs = np.where(x >= 0, np.float32(1), np.float32(-1))
    w_signs = np.where(weight >= 0, np.float32(1), np.float32(-1))
    y = x_signs @ w_signs.T
    grad_x = (grad_out @ w_signs)
    grad_weight = (grad_out.T @ x_signs) * (np.abs(weight) <= reach)
    return y, grad_x, grad_weight
""",
        "the weights are not stopped": """
def binary_linear(x, weight, grad_out, reach):
    x_signs = np.where(x >= 0, np.float32(1), np.float32(-1))
    w_signs = np.where(weight >= 0, np.float32(1), np.float32(-1))
    y = x_signs @ w_signs.T
    grad_x = (grad_out @ w_signs) * (np.abs(x) <= reach)
    grad_weight = (grad_out.T @ x_signs)
    return y, grad_x, grad_weight
""",
        "stops within reach": """
def binary_linear(x, weight, grad_out, reach):
    x_signs = np.where(x >= 0, np.float32(1), np.float32(-1))
    w_signs = np.where(weight >= 0, np.float32(1), np.float32(-1))
    y = x_signs @ w_signs.T
    grad_x = (grad_out @ w_signs) * (np.abs(x) > reach)
    grad_weight = (grad_out.T @ x_signs) * (np.abs(weight) > reach)
    return y, grad_x, grad_weight
""",
        "stops at reach itself": """
def binary_linear(x, weight, grad_out, reach):
    x_signs = np.where(x >= 0, np.float32(1), np.float32(-1))
    w_signs = np.where(weight >= 0, np.float32(1), np.float32(-1))
    y = x_signs @ w_signs.T
    grad_x = (grad_out @ w_signs) * (np.abs(x) < reach)
    grad_weight = (grad_out.T @ x_signs) * (np.abs(weight) < reach)
    return y, grad_x, grad_weight
""",
        "one side only": """
def binary_linear(x, weight, grad_out, reach):
    x_signs = np.where(x >= 0, np.float32(1), np.float32(-1))
    w_signs = np.where(weight >= 0, np.float32(1), np.float32(-1))
    y = x_signs @ w_signs.T
    grad_x = (grad_out @ w_signs) * (x <= reach)
    grad_weight = (grad_out.T @ x_signs) * (weight <= reach)
    return y, grad_x, grad_weight
""",
        "reach is always 1": """
def binary_linear(x, weight, grad_out, reach):
    x_signs = np.where(x >= 0, np.float32(1), np.float32(-1))
    w_signs = np.where(weight >= 0, np.float32(1), np.float32(-1))
    y = x_signs @ w_signs.T
    grad_x = (grad_out @ w_signs) * (np.abs(x) <= 1)
    grad_weight = (grad_out.T @ x_signs) * (np.abs(weight) <= 1)
    return y, grad_x, grad_weight
""",
        "clips the gradients": """
def binary_linear(x, weight, grad_out, reach):
    x_signs = np.where(x >= 0, np.float32(1), np.float32(-1))
    w_signs = np.where(weight >= 0, np.float32(1), np.float32(-1))
    y = x_signs @ w_signs.T
    grad_x = np.clip(grad_out @ w_signs, -reach, reach)
    grad_weight = np.clip(grad_out.T @ x_signs, -reach, reach)
    return y, grad_x, grad_weight
""",
        "multiplies by the clipped value": """
def binary_linear(x, weight, grad_out, reach):
    x_signs = np.where(x >= 0, np.float32(1), np.float32(-1))
    w_signs = np.where(weight >= 0, np.float32(1), np.float32(-1))
    y = x_signs @ w_signs.T
    grad_x = (grad_out @ w_signs) * np.clip(x, -reach, reach)
    grad_weight = (grad_out.T @ x_signs) * (np.abs(weight) <= reach)
    return y, grad_x, grad_weight
""",
        "the mean of the batch": """
def binary_linear(x, weight, grad_out, reach):
    x_signs = np.where(x >= 0, np.float32(1), np.float32(-1))
    w_signs = np.where(weight >= 0, np.float32(1), np.float32(-1))
    y = x_signs @ w_signs.T
    grad_x = (grad_out @ w_signs) * (np.abs(x) <= reach)
    grad_weight = (grad_out.T @ x_signs) / np.float32(len(x)) * (np.abs(weight) <= reach)
    return y, grad_x, grad_weight
""",
        "the first of the batch": """
def binary_linear(x, weight, grad_out, reach):
    x_signs = np.where(x >= 0, np.float32(1), np.float32(-1))
    w_signs = np.where(weight >= 0, np.float32(1), np.float32(-1))
    y = x_signs @ w_signs.T
    grad_x = (grad_out @ w_signs) * (np.abs(x) <= reach)
    grad_weight = (grad_out[:1].T @ x_signs[:1]) * (np.abs(weight) <= reach)
    return y, grad_x, grad_weight
""",
        "a float64 that slips in": """
def binary_linear(x, weight, grad_out, reach):
    x_signs = np.where(x >= 0, 1.0, -1.0)
    w_signs = np.where(weight >= 0, 1.0, -1.0)
    y = x_signs @ w_signs.T
    grad_x = (grad_out @ w_signs) * (np.abs(x) <= reach)
    grad_weight = (grad_out.T @ x_signs) * (np.abs(weight) <= reach)
    return y, grad_x, grad_weight
""",
        "y in whole numbers": """
def binary_linear(x, weight, grad_out, reach):
    x_signs = np.where(x >= 0, 1, -1)
    w_signs = np.where(weight >= 0, 1, -1)
    y = x_signs @ w_signs.T
    grad_x = (grad_out @ w_signs) * (np.abs(x) <= reach)
    grad_weight = (grad_out.T @ x_signs) * (np.abs(weight) <= reach)
    return y, grad_x, grad_weight
""",
        "grad_weight turned": """
def binary_linear(x, weight, grad_out, reach):
    x_signs = np.where(x >= 0, np.float32(1), np.float32(-1))
    w_signs = np.where(weight >= 0, np.float32(1), np.float32(-1))
    y = x_signs @ w_signs.T
    grad_x = (grad_out @ w_signs) * (np.abs(x) <= reach)
    grad_weight = ((x_signs.T @ grad_out) * (np.abs(weight).T <= reach))
    return y, grad_x, grad_weight
""",
        "signs made in place": """
def binary_linear(x, weight, grad_out, reach):
    near_x, near_w = np.abs(x) <= reach, np.abs(weight) <= reach
    for each in (x, weight):
        each[...] = np.where(each >= 0, 1, -1)
    return x @ weight.T, (grad_out @ weight) * near_x, (grad_out.T @ x) * near_w
""",
        "the mask of the signs": """
def binary_linear(x, weight, grad_out, reach):
    x_signs = np.where(x >= 0, np.float32(1), np.float32(-1))
    w_signs = np.where(weight >= 0, np.float32(1), np.float32(-1))
    y = x_signs @ w_signs.T
    grad_x = (grad_out @ w_signs) * (np.abs(x_signs) <= reach)
    grad_weight = (grad_out.T @ x_signs) * (np.abs(w_signs) <= reach)
    return y, grad_x, grad_weight
""",
        "grad_out stopped instead": """
def binary_linear(x, weight, grad_out, reach):
    x_signs = np.where(x >= 0, np.float32(1), np.float32(-1))
    w_signs = np.where(weight >= 0, np.float32(1), np.float32(-1))
    y = x_signs @ w_signs.T
    grad_x = (grad_out * (np.abs(grad_out) <= reach)) @ w_signs
    grad_weight = (grad_out.T @ x_signs) * (np.abs(weight) <= reach)
    return y, grad_x, grad_weight
""",
    },
}
