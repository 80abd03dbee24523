"""The bank of wrong answers: what learners plausibly get wrong in each exercise.

Each exercise of the notebooks needs at least four, each wrong in its own way: an off by one, the
wrong axis, a forgotten bias or padding, a unit, a float64 that slips in. `test_wrong_answers.py`
proves that the graders see through every one of them.

To add one: the key is the `grade_id` of the exercise's *solution* cell in the notebook's nbgrader
metadata. Name the mistake, and say what differs from the notebook's own solution:

    "forgets the plus one": ("// stride + 1", "// stride"),

(old text, new text); the new text stands wherever the old one stood. A list holds several of them,
made one after the other. `START` is the mark above the solution: what replaces it comes first, and
may return at once. An answer that has nothing in common with the solution is its full text. It must
run by itself, and at least one test of the exercise must fail on it with an AssertionError whose
message helps.
"""

Change = tuple[str, str]

START = "### BEGIN SOLUTION"
# What several wrong answers of one exercise change.
SCALE = "scale = 2.0 ** (exponent - 1)"
ZERO_OR_HALF = "np.where(largest > 0, scales / 2, 0)"
ROUNDED_EDGE = "np.where(gamma < 0, np.floor(edge), np.ceil(edge))"
DIFFERENCE = "(together(2 * repeats) - together(repeats))"
STEPS = "np.where(largest > 0, largest / 127, 1)"
ROUNDED = "np.rint(channels / scales[:, np.newaxis])"
QUOTIENT = "xp.where(flat, xp.float32(0), centred / xp.where(flat, xp.float32(1), spread))"
WAIT = "launch()  # compiles"
AROUND = "[(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % 64)]"
GRAD_X = "(grad_out @ w_signs) * (np.abs(x) <= reach)"
GRAD_WEIGHT = "(grad_out.T @ x_signs) * (np.abs(weight) <= reach)"
X_SIGNS = "np.where(x >= 0, np.float32(1), np.float32(-1))"
WEIGHT_SIGNS = "np.where(weight >= 0, np.float32(1), np.float32(-1))"
CLIPPED = "np.where(gamma == 0, always, np.clip(thresholds, -length - 1, length + 1))"
FREE = "free_bytes // (itemsize * (patches + max(padded, output)))"

WRONG_ANSWERS: dict[str, dict[str, Change | list[Change] | str]] = {
    "product_intensity": {
        "counts a MAC as one operation": ("2 * m * k * n", "m * k * n"),
        "forgets to write the result": ("k * n + m * n", "k * n"),
        "always float32": ("itemsize * (", "4 * ("),
        "takes every matrix for square": [
            ("2 * m * k * n", "2 * m**3"),
            ("(m * k + k * n + m * n)", "3 * m**2"),
        ],
        "bytes per FLOP": ("flop / moved", "moved / flop"),
    },
    "most_to_gain": {
        "the smallest share of the roof": (
            "best = max(gains, key=gains.get)",
            "best = max(gains, key=lambda name: gains[name] / np.median(runs[name][2]))",
        ),
        "a mean, moved by one disturbed sample": ("np.median(", "np.mean("),
        "the fastest sample": ("np.median(", "np.min("),
        "both times, one after the other": (
            "max(flop / gflops, moved_bytes / gb_per_s)",
            "(flop / gflops + moved_bytes / gb_per_s)",
        ),
        "the arithmetic alone": (
            "max(flop / gflops, moved_bytes / gb_per_s)",
            "flop / gflops",
        ),
        "the shorter of the two times": ("= max(flop", "= min(flop"),
        "seconds instead of milliseconds": ("* 1e-6", "* 1e-9"),
        "no gain below 0": ("return best, gains[best]", "return best, max(0.0, gains[best])"),
        "the slowest": ("key=gains.get", "key=lambda name: np.median(runs[name][2])"),
        "forgets to return": ("return best, gains[best]", "return None"),
    },
    "conv_macs": {
        "forgets the batch": ("batch * filters * positions", "filters * positions"),
        "pads one side only": ("2 * padding[axis]", "padding[axis]"),
        "ignores groups": ("weight_shape[1] * weight_shape[2]", "x_shape[1] * weight_shape[2]"),
        "ignores dilation": (
            "dilation[axis] * (weight_shape[2 + axis] - 1) + 1",
            "weight_shape[2 + axis]",
        ),
        "swaps vertical and horizontal": [
            ("dilation[axis]", "dilation[1 - axis]"),
            ("padding[axis]", "padding[1 - axis]"),
            ("stride[axis]", "stride[1 - axis]"),
        ],
        "true division": ("// stride", "/ stride"),
        "forgets the first position": ("// stride[axis] + 1", "// stride[axis]"),
    },
    "fair_time": {
        "counts the warm-up": [
            ("range(warmup)", "range(0)"),
            ("range(repeats)", "range(warmup + repeats)"),
        ],
        "no warm-up": ("range(warmup)", "range(0)"),
        "mean instead of median": ("statistics.median", "statistics.mean"),
        "one clock around the loop": [
            (
                "        start = clock()\n"
                "        function()\n"
                "        times.append(clock() - start)",
                "        function()",
            ),
            ("times = []", "start = clock()"),
            (
                "return statistics.median(times), min(times), max(times)",
                "each = (clock() - start) / repeats\n    return each, each, each",
            ),
        ],
        "the clock keeps running": [
            ("        start = clock()\n", ""),
            ("times = []", "times, start = [], clock()"),
        ],
        "upper of the two middle times": (
            "statistics.median(times)",
            "sorted(times)[len(times) // 2]",
        ),
    },
    "after_speedup": {
        "shares of the old total": ("100 * ms / total", "100 * ms / sum(times_ms.values())"),
        "adds the speed-ups up": (
            "sum(times_ms.values()) / total",
            "sum(speedups.get(k, 1) * ms / sum(times_ms.values()) for k, ms in times_ms.items())",
        ),
        "takes times for percentages": ("sum(times_ms.values()) / total", "100 / total"),
        "fractions instead of percent": ("100 * ms / total", "ms / total"),
        "forgets the kinds that stay": [
            (
                "{kind: ms / speedups.get(kind, 1) for kind, ms in times_ms.items()}",
                "{kind: times_ms[kind] / factor for kind, factor in speedups.items()}",
            ),
            ("sum(new_ms.values())", "sum(new_ms.values()) or 1e-9"),
        ],
    },
    "smallest_batch": {
        "rounds down": ("        batch += 1", "        break"),
        "never gives up": ("return None", "return 99_999"),
        "only the weights move": [
            ("max(1, int(4 * ridge * weights / gain))", "1"),
            ("(batch * (inputs + outputs) + weights)", "weights"),
        ],
        "one operation a MAC": [
            ("2 * inputs * outputs - 4", "inputs * outputs - 4"),
            ("2 * batch * inputs", "batch * inputs"),
        ],
        "always finds a batch": [
            (
                "2 * inputs * outputs - 4 * ridge * (inputs + outputs)",
                "abs(2 * inputs * outputs - 4 * ridge * (inputs + outputs))",
            ),
            ("        batch += 1", "        return batch + 1"),
        ],
        "weights read for every image": (
            START,
            "moved = 4 * (inputs + outputs + inputs * outputs + outputs)\n"
            "    return 1 if 2 * inputs * outputs / moved >= ridge else None",
        ),
        "numbers of one byte": ("4 * ridge", "ridge"),
    },
    "image_times": {
        "compares the times of batches": [
            ('ms / before["batch"] for', "ms for"),
            ('ms / after["batch"] for', "ms for"),
        ],
        "compares the middles alone": [
            ("new_high < old_low", "new_low + new_high < old_low + old_high"),
            ("new_low > old_high", "new_low + new_high > old_low + old_high"),
        ],
        "takes what touches for apart": [
            ("new_high < old_low", "new_high <= old_low"),
            ("new_low > old_high", "new_low >= old_high"),
        ],
        "compares shares": (
            START,
            "def share(run, kind):\n"
            "        return run[kind][0] / sum(run[k][0] for k in run if k != 'batch')\n"
            "    words, both = {}, before.keys() & after.keys() - {'batch'}\n"
            "    for kind in both:\n"
            "        less = share(after, kind) < share(before, kind)\n"
            "        words[kind] = 'faster' if less else 'slower'\n"
            "    return {k: words.get(k, 'gone') for k in before if k != 'batch'}",
        ),
        "gone is faster": ('words[kind] = "gone"', 'words[kind] = "faster"'),
        "before and after swapped": (
            '"faster" if faster else "slower" if slower',
            '"slower" if faster else "faster" if slower',
        ),
    },
    "im2col_ms": {
        "each number moved once": ("2 * 4 * patches", "4 * patches"),
        "a MAC as one operation": ("2 * filters * patches", "filters * patches"),
        "reads the input, writes the patches": (
            "2 * 4 * patches",
            "4 * (patches + batch * channels * image_shape[1] * image_shape[2])",
        ),
        "seconds": ("1e3 * ", ""),
        "forgets the batch": ("patches = batch * channels", "patches = channels"),
        "ignores the stride": (" // stride", ""),
        "pads one side only": ("2 * padding", "padding"),
        "gibibytes": ("1e9 * copy_gb_per_s", "2**30 * copy_gb_per_s"),
    },
    "largest_batch": {
        "always float32": ("(itemsize * ", "(4 * "),
        "the patches alone": ("(patches + max(padded, output))", "patches"),
        "padded input and output at a time": ("max(padded, output)", "padded + output"),
        "the channels of one group": [
            ("filters, _, filter_h", "filters, group_channels, filter_h"),
            ("channels * filter_h", "group_channels * filter_h"),
        ],
        "never none": (FREE, "max(1, free_bytes // (itemsize * (patches + max(padded, output))))"),
        "rounds to the nearest": (
            FREE,
            "round(free_bytes / (itemsize * (patches + max(padded, output))))",
        ),
        "ignores the stride": (" // stride", ""),
    },
    "what_changed": {
        "compares medians": [
            ("new_high < low", "new_middle < middle"),
            ("new_low > high", "new_middle > middle"),
        ],
        "compares the best of all": [("(25, 50, 75)", "(0, 50, 0)")],
        "all the samples instead of the middle half": ("(25, 50, 75)", "(0, 50, 100)"),
        "mixes up faster and slower": [
            ('"faster" if', '"slow" if'),
            ('"slower" if', '"faster" if'),
            ('"slow" if', '"slower" if'),
        ],
        "what is equal may decide": ('if says[part] != "equal"', "if new_middle != middle"),
        "the larger ratio instead of the larger time": (
            "abs(new_middle - middle)",
            "abs(new_middle / middle - 1)",
        ),
        "only gains count": ("abs(new_middle - middle)", "middle - new_middle"),
        "never none": ("default=None", 'default="copy"'),
    },
    "best_tile": {
        "the most sums": ("(rows + wide))", "1)"),
        "forgets what hangs over": ("m * n * rows * wide, covered *", "rows * wide, 1 *"),
        "no register for b": ("rows * wide + wide + 1", "rows * wide + 1"),
        "no register for a": ("rows * wide + wide + 1", "rows * wide + wide"),
        "columns are vectors": ("columns = wide * lanes", "columns = wide"),
        "the last of equals": ("useful > most", "useful >= most"),
        "rows alone are covered": (" * -(-n // columns) * columns", " * n"),
    },
    "rows_to_image": {
        "overwrites instead of adding": ("+= rows", "= rows"),
        "a float64 slips in": ("x_shape, rows.dtype", "x_shape"),
        "averages what flows back": [
            (
                "image = np.zeros(x_shape, rows.dtype)",
                "image, times = np.zeros((2, *x_shape), rows.dtype)",
            ),
            ("image[:, :, down", "times[:, :, down, across] += 1\n            image[:, :, down"),
            ("return image", "return image / np.maximum(times, 1)"),
        ],
        "ignores dilation": ("p * dilation[0], q * dilation[1]", "p, q"),
        "channels outermost": [
            ("*kernel, channels", "channels, *kernel"),
            ("rows[:, :, :, p, q]", "rows[..., p, q]"),
        ],
        "ignores the stride": [
            ("top + stride[0] * (out_h - 1) + 1, stride[0]", "top + out_h"),
            ("left + stride[1] * (out_w - 1) + 1, stride[1]", "left + out_w"),
        ],
        "changes the rows it was given": (
            "transpose(0, 3, 1, 2)",
            "transpose(0, 3, 1, 2)\n            rows[:, :, :, p, q] = 0",
        ),
    },
    "days_with_transfer": {
        "adds both even when overlapped": ("max(compute_s, move_s) if overlapped else ", ""),
        "bits for bytes": ("batch * image_bytes", "8 * batch * image_bytes"),
        "gibibytes for gigabytes": ("1e9", "2**30"),
        "drops the last batch of a pass": ("-(-images // batch)", "(images // batch)"),
        "batches run on across passes": (
            "epochs * -(-images // batch)",
            "-(-epochs * images // batch)",
        ),
        "moves one image a step": ("batch * image_bytes", "image_bytes"),
        "hours": ("86_400", "3_600"),
        "overlapped, the way is free": ("max(compute_s, move_s) if", "compute_s if"),
    },
    "prepare_and_count": {
        "calls NumPy by its name": ("array_module(images, logits, labels)", "np"),
        "a float64 slips in": ("images.astype(xp.float32)", "images"),
        "divides by zero": (QUOTIENT, "centred / spread"),
        "goes through the CPU": [
            (
                START,
                "back = np.asarray if array_module(images) is np else to_gpu\n"
                "    images, logits, labels = to_cpu(images), to_cpu(logits), to_cpu(labels)",
            ),
            (
                "return prepared, (logits.argmax(axis=1) == labels).sum()",
                "return back(prepared), back(np.asarray((logits.argmax(axis=1) == labels).sum()))",
            ),
        ],
        "fetches the count": (
            "(logits.argmax(axis=1) == labels).sum()",
            "int((logits.argmax(axis=1) == labels).sum())",
        ),
        "an if for every channel": (
            QUOTIENT,
            "centred\n"
            "    for c in range(images.shape[1]):\n"
            "        prepared[:, c] = 0 if flat[0, c] else centred[:, c] / spread[0, c]",
        ),
        "each image by itself": ("axis=(0, 2, 3)", "axis=(2, 3)"),
        "counts along the wrong axis": ("logits.argmax(axis=1)", "logits.max(axis=1)"),
        "an epsilon for the division": (QUOTIENT, "centred / (spread + xp.float32(1))"),
    },
    "break_even": {
        "forgets the transfer": (' + row["transfer_ms"]', ""),
        "the first win": ("            break", "            continue"),
        "takes the list for sorted": (
            'sorted(rows, key=lambda row: row["size"], reverse=True)',
            "reversed(rows)",
        ),
        "as fast counts as faster": (">=", ">"),
        "the last loss": [
            ("            break", '            return row["size"]'),
            ("return answer", "return None"),
        ],
        "the size behind the last loss, even where it never wins": (
            "answer = None",
            'answer = max((row["size"] for row in rows), default=None)',
        ),
        "the transfer there counts, the way back not": (
            'row["transfer_ms"]',
            'row["transfer_ms"] / 2',
        ),
        "no row, no answer": (
            "return answer",
            'return answer or (max(row["size"] for row in rows) if rows else None)',
        ),
    },
    "kernel_time": {
        "never waits": [
            ("synchronize()\n        return", "return"),
            (DIFFERENCE, "together(repeats)"),
        ],
        "no warm-up": [(WAIT, "first = together(repeats)"), ("- together(repeats)", "- first")],
        "starts the clock while older work runs": [
            ("synchronize()\n        start", "start"),
            (WAIT, "launch()\n    first = together(repeats)"),
            ("- together(repeats)", "- first"),
        ],
        "one launch, waited for": (
            "(together(2 * repeats) - together(repeats)) / repeats",
            "together(1)",
        ),
        "waits after every launch": [
            (
                "            launch()\n        synchronize()",
                "            launch()\n            synchronize()",
            ),
            (DIFFERENCE, "together(repeats)"),
        ],
        "waits once for all, and shares it out": (DIFFERENCE, "together(repeats)"),
        "subtracts the time of ordering": [
            (
                "synchronize()\n        return",
                "start = clock()\n        synchronize()\n        return",
            ),
            (DIFFERENCE, "together(repeats)"),
        ],
        "divides by all launches": [
            (WAIT, "launch()\n    first = together(repeats)"),
            ("- together(repeats)) / repeats", "- first) / (2 * repeats)"),
        ],
        "launches until the overhead is small": (
            "(together(2 * repeats) - together(repeats)) / repeats",
            "together(100_000) / 100_000",
        ),
        "works the waiting out, in time of one wait": (
            "together(2 * repeats) - together(repeats)",
            "together(repeats) - together(0)",
        ),
    },
    "tiled_product": {
        "fetches for itself, without tiles": [
            ("here_a[y, k] * here_b[k, x]", "a[row, start + k] * b[start + k, column]"),
        ],
        "computes before all have fetched": (
            "here_b[y, x] = b[start + y, column]\n        cuda.syncthreads()",
            "here_b[y, x] = b[start + y, column]",
        ),
        "fetches before all have computed": (
            "* here_b[k, x]\n        cuda.syncthreads()",
            "* here_b[k, x]",
        ),
        "takes rows for columns": ("column, row =", "row, column ="),
        "as many tiles as the result is wide": (
            "range(0, a.shape[1], TILE)",
            "range(0, b.shape[1], TILE)",
        ),
        "a total for each tile": (
            "        cuda.syncthreads()\n        for k",
            "        cuda.syncthreads()\n        total = float32(0)\n        for k",
        ),
    },
    "what_limits": {
        "takes the mean": ("np.median", "np.mean"),
        "takes the fastest": ("np.median(samples_ms)", "min(samples_ms)"),
        "adds the three up": ("least_ms[limit] / np", "sum(least_ms.values()) / np"),
        "the shortest of the three": ("max(least_ms", "min(least_ms"),
        "forgets that a clock can be wrong": ("if share > 1:", "if False:"),
        "always knows": ("if share >= 0.5 else", "if True else"),
        "more than half": ("share >= 0.5", "share > 0.5"),
        "seconds": [
            ("(1e9 * tflops)", "(1e12 * tflops)"),
            ("(1e6 * gb_per_s)", "(1e9 * gb_per_s)"),
        ],
        "a share in percent": [
            ("share = least", "share = 100 * least"),
            ("share > 1", "share > 100"),
            ("share >= 0.5", "share >= 50"),
        ],
    },
    "efficiencies": {
        "against one GPU, which is not in the table": ("best[least] / least", "best[least]"),
        "the last run counts": (
            'max(row["images_per_s"], best.get(row["gpus"], 0))',
            'row["images_per_s"]',
        ),
        "the speed-up": ("100 * best[gpus] / gpus", "best[gpus]"),
        "a share, not percent": ("100 * ", ""),
        "takes the first row for the smallest": ("min(best)", 'rows[0]["gpus"]'),
        "in the order of the table": ("sorted(best)", "best"),
        "the mean of the runs": [
            (
                'max(row["images_per_s"], best.get(row["gpus"], 0))',
                '[*best.get(row["gpus"], []), row["images_per_s"]]',
            ),
            (
                "least =",
                "best = {gpus: sum(runs) / len(runs) for gpus, runs in best.items()}\n    least =",
            ),
        ],
    },
    "to_blame": {
        "compares medians, and not samples": [
            ("min(half) > max(one) / 2", "np.median(half) > np.median(one) / 2"),
            ("min(share) > max(half)", "np.median(share) > np.median(half)"),
        ],
        "half ought to take as long as one": (
            "min(half) > max(one) / 2",
            "min(half) > max(one)",
        ),
        "messages are what is above half of one": (
            "np.median(share) - np.median(half)",
            "np.median(share) - np.median(one) / 2",
        ),
        "messages first": (
            "max(costs_ms, key=costs_ms.get) if costs_ms",
            '("messages" if "messages" in costs_ms else "cores") if costs_ms',
        ),
        "the smaller cost": ("max(costs_ms, key", "min(costs_ms, key"),
        "somebody must be to blame": (
            ' if costs_ms else "nothing is shown"',
            ' if costs_ms else "cores"',
        ),
        "the means": [
            ("np.median(half) - np.median(one) / 2", "np.mean(half) - np.mean(one) / 2"),
            ("np.median(share) - np.median(half)", "np.mean(share) - np.mean(half)"),
        ],
    },
    "expected_slowest_s": {
        "the largest there is": (START, "return float(max(times_s))"),
        "the mean, whatever the number": (START, "return float(np.mean(times_s))"),
        "forgets to sort": (
            "np.sort(np.asarray(times_s, dtype=np.float64))",
            "np.asarray(times_s, dtype=np.float64)",
        ),
        "the fastest of n": ("dtype=np.float64))", "dtype=np.float64))[::-1]"),
        "counts from zero": [
            ("len(times_s) + 1", "len(times_s)"),
            ("times_s @ np.diff(done)", "times_s[0] * done[0] + times_s[1:] @ np.diff(done)"),
        ],
        "adds the probabilities up": (
            "(np.arange(len(times_s) + 1) / len(times_s)) ** workers",
            "np.minimum(1, workers * np.arange(len(times_s) + 1) / len(times_s))",
        ),
        "without replacement": (
            "done = (np.arange(len(times_s) + 1) / len(times_s)) ** workers",
            "ways = [math.comb(k, min(workers, len(times_s))) for k in range(len(times_s) + 1)]\n"
            "    done = np.array(ways, dtype=np.float64) / ways[-1]",
        ),
        "an exponential tail is assumed": (
            START,
            "tail = sum(1 / i for i in range(1, workers + 1)) - 1\n"
            "    return float(np.mean(times_s) + np.std(times_s) * tail)",
        ),
        "a quantile": (START, "return float(np.quantile(times_s, workers / (workers + 1)))"),
    },
    "exposed_s": {
        "sends all at the end": [
            ("max(link_free_s, computed_s) + sending_s", "link_free_s + sending_s"),
            ("max(0.0, link_free_s - computed_s)", "link_free_s"),
        ],
        "as if all could hide": (
            "max(link_free_s, computed_s) + sending_s",
            "link_free_s + sending_s",
        ),
        "sends before there is anything": [
            ("        computed_s += seconds\n", ""),
            ("computed_s) + sending_s", "computed_s) + sending_s\n        computed_s += seconds"),
        ],
        "a link for every message": ("computed_s) + sending_s", "computed_s + sending_s)"),
        "in the forward order": ("in layers", "in reversed(layers)"),
        "forgets the latency": ("latency_s + size_bytes", "size_bytes"),
        "empty messages": ("if size_bytes", "if True"),
        "below zero": ("max(0.0, link_free_s - computed_s)", "link_free_s - computed_s"),
        "the whole step": ("max(0.0, link_free_s - computed_s)", "max(computed_s, link_free_s)"),
        "gigabits": ("latency_s + size_bytes", "latency_s + 8 * size_bytes"),
    },
    "ring_all_reduce": {
        "sums without sending": (START, "return [sum(gradients) for _ in gradients]"),
        "sums without sending, and sends for show": (
            "    return [\n",
            "    return [sum(gradients) for _ in gradients]\n    return [\n",
        ),
        "sends everything round": """
def ring_all_reduce(gradients, send):
    n, sums, moving = len(gradients), [g.copy() for g in gradients], list(gradients)
    for _ in range(n - 1):
        arrived = [send(w, (w + 1) % n, moving[w]) for w in range(n)]
        moving = [arrived[w - 1] for w in range(n)]
        sums = [total + new for total, new in zip(sums, moving)]
    return sums
""",
        "the average": (
            ".reshape(gradient.shape)",
            ".reshape(gradient.shape) / gradient.dtype.type(n)",
        ),
        "adds into the input": [
            ("ravel().copy()", "reshape(-1)"),
            (" = arrived", "[...] = arrived"),
        ],
        "a float64 that slips in": ("ravel().copy()", "ravel().astype(np.float64)"),
        "drops what n does not divide": (
            "np.array_split(gradient.ravel().copy(), n)",
            "np.split(\n"
            "        gradient.ravel().copy(), [i * (gradient.size // n) for i in range(1, n + 1)]\n"
            "    )",
        ),
        "stops halfway": ("range(n - 1):  # what", "range(0):  # what"),
        "adds on the second way round, too": ("(w + 1 - step) % n] =", "(w + 1 - step) % n] +="),
        "the second way round starts at the wrong chunk": ("(w + 1 - step) % n", "(w - step) % n"),
        "all to the first, and back": """
def ring_all_reduce(gradients, send):
    total, others = gradients[0].copy(), range(1, len(gradients))
    for worker in others:
        total = total + send(worker, 0, gradients[worker])
    return [total] + [send(0, worker, total) for worker in others]
""",
        "one after the other: a chain there and on": """
def ring_all_reduce(gradients, send):
    n, total = len(gradients), gradients[0].copy()
    for worker in range(n - 1):
        total = send(worker, worker + 1, total) + gradients[worker + 1]
    results = [None] * (n - 1) + [total]
    for step in range(n - 1):
        results[step] = send((step - 1) % n, step, results[step - 1])
    return results
""",
        "forgets the shape": (".reshape(gradient.shape)", ""),
    },
    "decode_float": {
        "the bias is a power of two": ("2 ** (exponent_bits - 1) - 1", "2 ** (exponent_bits - 1)"),
        "every format has the half's bias": ("2 ** (exponent_bits - 1) - 1", "15"),
        "lets NumPy do it": (START, "return float(np.array(pattern, np.uint16).view(np.float16))"),
        "lets NumPy do it for halves and bfloat16": (
            START,
            "if exponent_bits == 8:\n"
            "        return float(np.array(pattern << 16, np.uint32).view(np.float32))\n"
            "    return float(np.array(pattern, np.uint16).view(np.float16))",
        ),
        "subnormals with a leading one": ("if exponent == 0", "if exponent == 0 and fraction == 0"),
        "subnormals one exponent too low": ("2.0 ** (1 - bias)", "2.0 ** (0 - bias)"),
        "subnormals are zero": ("sign * fraction * 2.0 ** (1 - bias)", "sign * 0.0"),
        "infinity is the next power of two": ("if exponent == 2**exponent_bits - 1", "if False"),
        "all of the last exponent is infinite": (
            "math.nan if fraction else sign * math.inf",
            "sign * math.inf",
        ),
        "all of the last exponent is NaN": (
            "math.nan if fraction else sign * math.inf",
            "math.nan",
        ),
        "infinity without a sign": ("sign * math.inf", "math.inf"),
        "ignores the sign": ("-1.0 if", "1.0 if"),
        "zero without a sign": ("2.0 ** (1 - bias)", "2.0 ** (1 - bias) if fraction else 0.0"),
        "two's complement": [
            (
                START,
                "size = exponent_bits + fraction_bits\n"
                "    negative = pattern >> size\n"
                "    pattern = 2 ** (size + 1) - pattern if negative else pattern",
            ),
            ("-1.0 if pattern >> (exponent_bits + fraction_bits)", "-1.0 if negative"),
        ],
        "the fraction as a decimal": [
            (
                "fraction = (pattern % 2**fraction_bits) / 2**fraction_bits",
                "whole = pattern % 2**fraction_bits\n    fraction = whole / 10 ** len(str(whole))",
            ),
            ("sign * fraction *", "sign * whole / 2**fraction_bits *"),
        ],
    },
    "smallest_change": {
        "the whole spacing": ("spacing = ", "return "),
        "the tie counts as a change": ("if x / spacing % 2 == 1", "if True"),
        "the tie never counts": ("if x / spacing % 2 == 1", "if False"),
        "ties to odd": ("% 2 == 1", "% 2 == 0"),
        "the same everywhere": ("2.0 ** (exponent - 1 - fraction_bits)", "2.0**-fraction_bits"),
        "a percentage of x": ("2.0 ** (exponent - 1 - fraction_bits)", "x * 2.0**-fraction_bits"),
        "the exponent of frexp as it is": (
            "exponent - 1 - fraction_bits",
            "exponent - fraction_bits",
        ),
        "a little above, by a float64's epsilon of 1": (
            "math.nextafter(spacing / 2, math.inf)",
            "spacing / 2 + 2.0**-52",
        ),
        "tries it out in float64": (
            "if x / spacing",
            "d = spacing / 2\n"
            "    while round((x + d) / spacing) * spacing == x:\n"
            "        d += 2.0 ** (exponent - 53)\n"
            "    return d\n"
            "    if x / spacing",
        ),
        "below 1 all is subnormal": (
            "_, exponent = math.frexp(x)",
            "exponent = 1 + max(0, math.floor(math.log2(x)))",
        ),
        "rounds the exponent": (
            "_, exponent = math.frexp(x)",
            "exponent = 1 + round(math.log2(x))",
        ),
        "truncates instead of rounding": (
            "if x / spacing",
            "return math.nextafter(spacing, 0)\n    if x / spacing",
        ),
    },
    "loss_scale_for": {
        "no headroom": ("(2 * sizes.max())", "sizes.max()"),
        "not a power of two": (SCALE, "scale = float(largest / (2 * sizes.max()))"),
        "the next power of two above": (
            SCALE,
            "scale = 2.0 ** math.ceil(math.log2(largest / (2 * sizes.max())))",
        ),
        "the nearest power of two": (
            SCALE,
            "scale = 2.0 ** round(math.log2(largest / (2 * sizes.max())))",
        ),
        "strictly below the largest": (
            SCALE,
            "scale = 2.0 ** (math.ceil(math.log2(largest / (2 * sizes.max()))) - 1)",
        ),
        "never below 1": (SCALE, "scale = max(1.0, 2.0 ** (exponent - 1))"),
        "the largest, not the largest size": (
            "(2 * sizes.max())",
            "(2 * max(np.max(gradients), 1e-30))",
        ),
        "all below the smallest are lost": (
            "(sizes <= smallest / 2) & (sizes * scale > smallest / 2)",
            "(sizes < smallest) & (sizes * scale >= smallest)",
        ),
        "the tie survives": (
            "(sizes <= smallest / 2) & (sizes * scale > smallest / 2)",
            "(sizes < smallest / 2) & (sizes * scale >= smallest / 2)",
        ),
        "zeros count, too": [
            ("sizes[sizes > 0]", "sizes"),
            ("if not sizes.size", "if not sizes.any()"),
        ],
        "all that survive": ("(sizes <= smallest / 2) & ", ""),
        "all that were lost": (" & (sizes * scale > smallest / 2)", ""),
        "of the lost ones": (
            "rescued.mean()",
            "rescued.sum() / max(1, (sizes <= smallest / 2).sum())",
        ),
        "a count, not a share": ("rescued.mean()", "rescued.sum()"),
        "lets infinity pass": [
            ("if not np.isfinite(sizes).all()", "if False"),
            ("sizes[sizes > 0]", "sizes[np.isfinite(sizes) & (sizes > 0)]"),
        ],
        "lets NaN pass": ("not np.isfinite(sizes).all()", "np.isinf(sizes).any()"),
        "always the half's limits": (START, "largest, smallest = 65504.0, 2.0**-24"),
        "the most usual scale": (SCALE, "scale = 1024.0"),
        "nothing to scale: infinity": ("return 1.0, 0.0", "return math.inf, 0.0"),
        "changes the gradients": (
            "np.asarray(gradients, dtype=np.float64)).ravel()",
            "gradients, out=gradients).ravel().astype(np.float64)",
        ),
    },
    "quantise_int8": {
        "one scale for all": (
            STEPS,
            "np.full(len(weight), largest.max() / 127 if largest.any() else 1)",
        ),
        "a scale for each input channel": [
            (
                "weight.reshape(len(weight), -1)",
                "np.moveaxis(weight, 1, 0).reshape(weight.shape[1], -1)",
            ),
            (
                "codes.reshape(weight.shape)",
                "codes.reshape(np.moveaxis(weight, 1, 0).shape).swapaxes(0, 1)",
            ),
        ],
        "a scale for each row of a kernel": (
            "codes = np.rint(channels / scales[:, np.newaxis]).astype(np.int8)",
            "rows = np.abs(weight).max(axis=-1, keepdims=True)\n"
            "    steps = np.where(rows > 0, rows / 127, 1).astype(np.float32)\n"
            "    codes = np.rint(weight / steps).astype(np.int8)\n"
            "    scales = steps.reshape(len(weight), -1)[:, 0]",
        ),
        "truncates": (ROUNDED, "(channels / scales[:, np.newaxis] * (1 + 1e-6))"),
        "rounds down": ("np.rint", "np.floor"),
        "128 steps, which wrap round": [
            ("/ 127", "/ 128"),
            (".astype(np.int8)", ".astype(np.int32).astype(np.int8)"),
        ],
        "128 steps, -128 used": [
            ("/ 127", "/ 128"),
            (ROUNDED, "np.clip(np.rint(channels / scales[:, np.newaxis]), -128, 127)"),
        ],
        "255 steps for both signs": [
            ("largest / 127", "2 * largest / 255"),
            (ROUNDED, "np.clip(np.rint(channels / scales[:, np.newaxis]), -127, 127)"),
        ],
        "divides by zero": [
            (STEPS, "(largest / 127)"),
            (ZERO_OR_HALF, "(scales / 2)"),
            ("codes = ", "with np.errstate(all='ignore'):\n        codes = "),
        ],
        "a little added against zero": [
            (STEPS, "((largest + 1e-3) / 127)"),
            (ZERO_OR_HALF, "(scales / 2)"),
        ],
        "zeros have a bound": (ZERO_OR_HALF, "(scales / 2)"),
        "the largest, not the largest size": [
            ("np.abs(channels).max", "channels.max"),
            (ROUNDED, "np.clip(np.rint(channels / scales[:, np.newaxis]), -127, 127)"),
        ],
        "a float64 that slips in": [
            ("len(weight), -1)", "len(weight), -1).astype(np.float64)"),
            (".astype(np.float32)", ""),
        ],
        "codes that stay floats": (".astype(np.int8)", ""),
        "a whole step": ("scales / 2", "scales"),
        "the error itself, no bound": (
            ZERO_OR_HALF,
            "np.abs(channels - codes * scales[:, np.newaxis]).max(axis=1)",
        ),
        "one bound for all": (ZERO_OR_HALF, "np.full(len(weight), (largest / 254).max())"),
        "steps a unit, not units a step": [
            (STEPS, "(127 / np.where(largest > 0, largest, 127))"),
            ("channels / scales", "channels * scales"),
            ("scales / 2", "0.5 / scales"),
        ],
        "forgets the shape": ("codes.reshape(weight.shape)", "codes.ravel()"),
        "scales that keep their axes": (
            "return ",
            "scales = scales.reshape(-1, *[1] * (weight.ndim - 1))\n"
            "    bounds = bounds.reshape(scales.shape)\n"
            "    return ",
        ),
        "divides the weight itself": (
            "codes = np.rint(channels / scales[:, np.newaxis])",
            "channels /= scales[:, np.newaxis]\n    codes = np.rint(channels)",
        ),
        "codes from 0 to 255": [
            ("np.abs(channels).max(axis=1)", "np.ptp(channels, axis=1)"),
            ("/ 127", "/ 255"),
            ("channels / scales", "(channels - channels.min(axis=1, keepdims=True)) / scales"),
            ("np.int8", "np.uint8"),
        ],
        "zero takes part in a range from low to high": [
            ("np.abs(channels).max(axis=1)", "np.ptp(channels, axis=1)"),
            ("/ 127", "/ 254"),
            (
                "codes = ",
                "channels = channels - (channels.max(1) + channels.min(1))[:, np.newaxis] / 2\n"
                "    codes = ",
            ),
        ],
    },
    "explain_by_bytes": {
        "one disturbed run moves the mean": ("np.median", "np.mean"),
        "takes the fastest run": ("np.median", "np.min"),
        "time is bytes and nothing else": ("few_bytes * ms_per_byte\n", "faster\n"),
        "believes in less than nothing": (" or fixed_ms < 0", ""),
        "believes in a rate below 0": ("ms_per_byte <= 0", "ms_per_byte == 0"),
        "gigabytes in a millisecond": ("1e-6 / ms_per_byte", "1e-9 / ms_per_byte"),
        "forgets the fixed part of the third": ("fixed_ms + wanted_bytes", "wanted_bytes"),
    },
    "dots_of_bits": {
        "counts the rubbish": (" & counts", ""),
        "leaves out the last byte": (" & counts", "[:, : length // 8]"),
        "whole bytes only": (" & counts", "[:, : -(-length // 8)]"),
        "one place too many": ("< length", "<= length"),
        "one place too few": ("< length", "< length - 1"),
        "the first bit is the lowest": ("< length", '< length, bitorder="little"'),
        "the lowest bit first": (
            "np.bitwise_count((a_bytes ^ b_bytes) & counts)",
            'np.unpackbits(a_bytes ^ b_bytes, axis=1, count=length, bitorder="little")',
        ),
        "the number that agrees": ("2 * differing", "differing"),
        "twice what differs, without the length": ("length - 2 *", "-2 *"),
        "the wrong sign": (
            "length - 2 * differing.sum(axis=1, dtype=np.int64)",
            "2 * differing.sum(axis=1, dtype=np.int64) - length",
        ),
        "the length in bytes": ("return length", "return 8 * a_bytes.shape[1]"),
        "an unsigned sum": (", dtype=np.int64", ""),
        "a sum in eight bits": ("dtype=np.int64)", "dtype=np.uint8).astype(np.int64)"),
        "XNOR, and the rest of the byte agrees": [
            ("(a_bytes ^ b_bytes) & counts", "~((a_bytes ^ b_bytes) & counts)"),
            (
                "length - 2 * differing.sum(axis=1, dtype=np.int64)",
                "2 * differing.sum(axis=1, dtype=np.int64) - length",
            ),
        ],
        "AND where XOR belongs": ("a_bytes ^ b_bytes", "a_bytes & b_bytes"),
        "bits as 0 and 1": (
            START,
            "a, b = (np.unpackbits(rows, axis=1, count=length) for rows in (a_bytes, b_bytes))\n"
            "    return (a * b).sum(axis=1, dtype=np.int64)",
        ),
        "all rows in one": ("axis=1, ", ""),
        "along the wrong axis": ("axis=1", "axis=0"),
        "every row with every row": (
            START,
            "a, b = (np.unpackbits(rows, axis=1, count=length) for rows in (a_bytes, b_bytes))\n"
            "    return (2 * a.astype(int) - 1) @ (2 * b.astype(int) - 1).T",
        ),
        "a float": ("np.int64", "np.float64"),
        "works in the rows themselves": [
            ("differing =", "a_bytes ^= b_bytes\n    differing ="),
            ("(a_bytes ^ b_bytes) &", "a_bytes &"),
        ],
    },
    "pack_for_xnor": {
        "both filled up with zeros": ("b, True", "b, False"),
        "both filled up with ones": ("a, False", "a, True"),
        "the fillings exchanged": [("a, False", "a, True"), ("b, True", "b, False")],
        "b turned around as a whole": ("words_of(b, True)", "~words_of(b, False)"),
        "sign(0) is -1": ("x >= 0", "x > 0"),
        "1 for what is negative": ("x >= 0", "x < 0"),
        "NumPy's sign": ("x >= 0", "np.sign(x).astype(bool)"),
        "always one more word": ("-x.shape[-1] % 64", "64 - x.shape[-1] % 64"),
        "filled up to bytes of 8, zeros behind": [
            ("% 64", "% 8"),
            (
                "return np.packbits(bits, axis=-1)",
                "packed = np.packbits(bits, axis=-1)\n"
                "        packed = np.pad(packed, [*around[:-1], (0, -packed.shape[-1] % 8)])\n"
                "        return packed",
            ),
        ],
        "bytes the wrong way round": (">u8", "<u8"),
        "the lowest bit first": [("axis=-1", 'axis=-1, bitorder="little"'), (">u8", "<u8")],
        "the library's order of bits": ("axis=-1", 'axis=-1, bitorder="little"'),
        "bytes, not words": ('.view(">u8").astype(np.uint64)', ""),
        "signed words": ("np.uint64", "np.int64"),
        "big-endian words": (".astype(np.uint64)", ""),
        "words of 32 bits": [("% 64", "% 32"), (">u8", ">u4")],
        "padding in front": ("(0, -x.shape[-1] % 64)", "(-x.shape[-1] % 64, 0)"),
        "pads every axis": (AROUND, "[(0, -size % 64) for size in x.shape]"),
        "along the first axis": [
            (AROUND, "[(0, -x.shape[0] % 64)] + [(0, 0)] * (x.ndim - 1)"),
            ("np.packbits(bits, axis=-1)", "np.ascontiguousarray(np.packbits(bits, axis=0).T)"),
        ],
        "all rows in one": [(AROUND, "(0, -x.size % 64)"), ("x >= 0", "x.ravel() >= 0")],
        "rows of two axes only": ("around =", "x = x.reshape(-1, x.shape[-1])\n        around ="),
        "float sums of powers of two": (
            'np.packbits(bits, axis=-1).view(">u8")',
            "(bits.reshape(*bits.shape[:-1], -1, 64) @ 2.0 ** np.arange(63, -1, -1))",
        ),
        "filled up with what becomes +1": (
            "np.pad(x >= 0, around, constant_values=filler)",
            "np.pad(x, around) >= 0",
        ),
    },
    "fold_threshold": {
        "forgets the direction": ("np.where(gamma < 0, -1, 1)", "np.ones(gamma.shape)"),
        "always rounds up": (ROUNDED_EDGE, "np.ceil(edge)"),
        "always rounds down": (ROUNDED_EDGE, "np.floor(edge)"),
        "rounds to nearest": (ROUNDED_EDGE, "np.rint(edge)"),
        "cuts the decimals off": (ROUNDED_EDGE, "np.trunc(edge)"),
        "the edge itself is -1": [
            ("np.floor(edge)", "np.ceil(edge) - 1"),
            ("np.ceil(edge))", "np.floor(edge) + 1)"),
        ],
        "forgets eps": ("variance + eps", "variance"),
        "eps outside the root": ("np.sqrt(variance + eps)", "(np.sqrt(variance) + eps)"),
        "the variance, not its root": ("np.sqrt(variance + eps)", "(variance + eps)"),
        "divides by the root": (
            "beta * np.sqrt(variance + eps) / divisor",
            "beta / (np.sqrt(variance + eps) * divisor)",
        ),
        "forgets gamma": (" / divisor", ""),
        "the size of gamma": ("/ divisor", "/ np.abs(divisor)"),
        "the wrong sign of beta": ("mean - beta", "mean + beta"),
        "the wrong sign of the mean": ("mean - beta", "-mean - beta"),
        "forgets the mean": ("mean - beta", "-beta"),
        "gamma 0 is never +1": ("np.where(beta >= 0, -length, length + 1)", "length + 1"),
        "gamma 0 is always +1": ("np.where(beta >= 0, -length, length + 1)", "-length"),
        "beta 0 counts as -1": ("beta >= 0", "beta > 0"),
        "gamma 0 taken for a small one": [
            ("gamma == 0, 1.0", "gamma == 0, 1e-12"),
            (CLIPPED, "np.clip(thresholds, -length - 1, length + 1)"),
        ],
        "gamma 0 divided by": [
            ("/ divisor", "/ gamma"),
            (CLIPPED, "np.clip(np.nan_to_num(thresholds), -length - 1, length + 1)"),
        ],
        "gamma 0 turns the direction": ("gamma < 0, -1", "gamma <= 0, -1"),
        "beta against the mean where gamma is 0": ("beta >= 0", "beta >= mean"),
        "the length itself means never": ("-length, length + 1)  #", "-length, length)  #"),
        "cut to the length": ("-length - 1, length + 1", "-length, length"),
        "no bounds": ("np.clip(thresholds, -length - 1, length + 1)", "thresholds"),
        "bounds of 16 bits": ("-length - 1, length + 1", "-(2**15), 2**15"),
        "thresholds that stay floats": ("thresholds.astype(np.int32)", "thresholds"),
        "direction by beta": ("gamma < 0, -1", "beta < 0, -1"),
        "directions 0 and 1": ("gamma < 0, -1", "gamma < 0, 0"),
        "thresholds between the possible sums, all rounded up": (
            ROUNDED_EDGE,
            "2 * np.ceil(edge / 2)",
        ),
        "the first unit's gamma for all": (
            "np.where(gamma < 0, -1, 1)",
            "np.full(gamma.shape, -1 if gamma[0] < 0 else 1)",
        ),
    },
    "read_race": {
        "compares whatever it is given": ("if any(", "if False and any("),
        "threads do not matter": (', "threads", ', ", "),
        "packing does not matter": ('"threads", "packing")', '"threads")'),
        "one work is like another": ('("work", ', "("),
        "time for speed": ("their_middle / middle", "middle / their_middle"),
        "the median alone decides": [("high < their_low", "middle < their_middle")],
        "all samples must lie apart": ("[0.25, 0.5, 0.75]", "[0, 0.5, 1]"),
        "the mean": ("float(their_middle / middle)", 'np.mean(theirs["ms"]) / np.mean(ours["ms"])'),
        "touching is apart": ("high < their_low", "high <= their_low"),
    },
    "binary_linear": {
        "NumPy's sign of x": (X_SIGNS, "np.sign(x)"),
        "NumPy's sign of the weights": (WEIGHT_SIGNS, "np.sign(weight)"),
        "sign(0) is -1": (">= 0", "> 0"),
        "the sign bit: -0.0 is -1": [
            (X_SIGNS, "np.copysign(np.float32(1), x)"),
            (WEIGHT_SIGNS, "np.copysign(np.float32(1), weight)"),
        ],
        "y by the latent weights": ("@ w_signs.T", "@ weight.T"),
        "y by x itself": ("y = x_signs", "y = x"),
        "grad_x through the latent weights": ("grad_out @ w_signs", "grad_out @ weight"),
        "grad_weight by x itself": ("grad_out.T @ x_signs", "grad_out.T @ x"),
        "the true gradient": [(GRAD_X, "np.zeros_like(x)"), (GRAD_WEIGHT, "np.zeros_like(weight)")],
        "nothing is stopped": [
            (" * (np.abs(x) <= reach)", ""),
            (" * (np.abs(weight) <= reach)", ""),
        ],
        "x is not stopped": (" * (np.abs(x) <= reach)", ""),
        "the weights are not stopped": (" * (np.abs(weight) <= reach)", ""),
        "stops within reach": ("<= reach", "> reach"),
        "stops at reach itself": ("<= reach", "< reach"),
        "one side only": [("np.abs(x)", "x"), ("np.abs(weight)", "weight")],
        "reach is always 1": ("<= reach", "<= 1"),
        "clips the gradients": [
            (GRAD_X, "np.clip(grad_out @ w_signs, -reach, reach)"),
            (GRAD_WEIGHT, "np.clip(grad_out.T @ x_signs, -reach, reach)"),
        ],
        "multiplies by the clipped value": ("(np.abs(x) <= reach)", "np.clip(x, -reach, reach)"),
        "the mean of the batch": (
            "(grad_out.T @ x_signs)",
            "(grad_out.T @ x_signs) / np.float32(len(x))",
        ),
        "the first of the batch": ("grad_out.T @ x_signs", "grad_out[:1].T @ x_signs[:1]"),
        "a float64 that slips in": ("np.float32", "np.float64"),
        "y in whole numbers": ("np.float32", "int"),
        "grad_weight turned": (GRAD_WEIGHT, "(x_signs.T @ grad_out) * (np.abs(weight).T <= reach)"),
        "signs made in place": [
            (
                "    grad_x = ",
                "    x_reach, w_reach = abs(x) <= reach, abs(weight) <= reach\n"
                "    x[...], weight[...] = x_signs, w_signs\n"
                "    grad_x = ",
            ),
            ("(np.abs(x) <= reach)", "x_reach"),
            ("(np.abs(weight) <= reach)", "w_reach"),
        ],
        "the mask of the signs": [
            ("np.abs(x)", "np.abs(x_signs)"),
            ("np.abs(weight)", "np.abs(w_signs)"),
        ],
        "grad_out stopped instead": (GRAD_X, "(grad_out * (np.abs(grad_out) <= reach)) @ w_signs"),
    },
}
