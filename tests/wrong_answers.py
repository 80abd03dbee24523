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
}
