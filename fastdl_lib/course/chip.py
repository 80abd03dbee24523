"""The C files of the shipped binary networks, on this machine: sizes, answers and speed, recorded.

``python -m fastdl_lib.course.record chip`` writes ``data/recordings/chip.json``, which chapter 06
shows where there is no C compiler. Which network a number belongs to stands in its ``conditions``.
"""

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fastdl_lib.binary.export_c import compile_c, export_c
from fastdl_lib.binary.inference import fold
from fastdl_lib.binary.networks import binary_mlp
from fastdl_lib.core.compiler import c_compiler
from fastdl_lib.core.datasets import data_folder, mnist
from fastdl_lib.measuring.evidence import Measurement
from fastdl_lib.measuring.machine import machine_card
from fastdl_lib.measuring.recordings import Recording
from fastdl_lib.measuring.timing import benchmark
from fastdl_lib.nn.network import Network
from fastdl_lib.nn.training import predict_classes

CHIPS: Mapping[str, tuple[str, int]] = {
    "digits2048": ("binary_mlp.npz", 2048),
    "digits512": ("binary_mlp_small.npz", 512),
}
"""Name of a C file: the file of its weights in ``data/weights``, and the values of a layer."""

RECORDING = "chip.json"
IMAGES = 10_000  # all test images
CLOCKED = 1000  # images of a sample
BUDGET_S = 3.0


def chip_run(
    name: str, network: Network, images: np.ndarray, labels: np.ndarray
) -> list[Measurement]:
    """Export a network to C, compile it, and compare all its answers with Python's.

    Args:
        name: of the C file, and ``conditions["network"]`` of each result.
        network: what :func:`~fastdl_lib.binary.inference.fold` takes.
        images, labels: (N, C, H, W), float32, 0 to 1, and (N,), int64.

    Returns:
        By ``conditions["what"]``: ``"constants"``, ``"buffers"`` and ``"rest"`` (bytes; the last is
        the compiled library without its constants: code and headers), ``"equal"`` (answers that are
        Python's), ``"right"`` (%), and ``"speed"`` (images/s, one thread).

    Raises:
        RuntimeError: there is no C compiler, it refuses the file, or an answer is another one.
    """
    folded, card = fold(network), machine_card()
    pixels = np.rint(255 * images).astype(np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        chip = compile_c(export_c(folded, Path(folder, f"{name}.c")))
    file, answers = chip.file, chip.predict_classes(pixels)
    equal = int((answers == predict_classes(folded, images)).sum())
    if equal < len(images):
        raise RuntimeError(f"{name}: only {equal:,} of {len(images):,} answers are Python's.")
    built = {"network": name, "flags": " ".join(chip.flags)}
    found = []
    for what, unit, value in (
        ("constants", "bytes", file.constants_bytes),
        ("buffers", "bytes", file.buffers_bytes),
        ("rest", "bytes", chip.library_bytes - file.constants_bytes),
        ("equal", "answers", equal),
        ("right", "%", 100 * float((answers == labels).mean())),
    ):
        conditions = {**built, "what": what} | ({} if unit == "bytes" else {"images": len(images)})
        found.append(
            Measurement.measured(f"{name}, {what}", unit, value, machine=card, **conditions)
        )
    few = pixels[:CLOCKED]
    time_ms = benchmark(chip.predict_classes, few, budget_s=BUDGET_S, threads=1, machine=card)
    speed = time_ms.convert(lambda ms: round(1e3 * len(few) / ms, 1), "images/s")
    clocked = {**built, "what": "speed", "images": len(few), **speed.conditions}
    return [*found, dataclasses.replace(speed, name=f"{name}, speed", conditions=clocked)]


def measure() -> Recording:
    """Run both networks' C files. Raises RuntimeError, FileNotFoundError where something is missing
    for it, before the work."""
    networks = _networks()
    images, labels = (array[:IMAGES] for array in mnist("test"))
    found: list[Measurement] = []
    for name, network in networks.items():
        run = chip_run(name, network, images, labels)
        for m in run:
            value = m.value() if len(m.samples) > 1 else f"{m.median:,.8g}"
            print(f"{m.name}: {value} {m.unit}", flush=True)
        found += run
    return Recording(found[0].machine, "python -m fastdl_lib.course.record chip", tuple(found))


def _networks() -> dict[str, Network]:
    """The networks by the names of their C files, once nothing is missing to record them."""
    if c_compiler() is None:
        raise RuntimeError("there is no C compiler here: install one (Debian: apt install gcc).")
    networks, weights = {}, data_folder() / "weights"
    for name, (file, hidden) in CHIPS.items():
        if not (weights / file).exists():
            raise FileNotFoundError(
                f"data/weights/{file} is missing. Train it: python -m fastdl_lib.course.train "
                f"--network mlp --hidden {hidden} --packed --out data/weights/{file}"
            )
        networks[name] = binary_mlp(hidden=hidden).load_weights(weights / file)
    return networks
