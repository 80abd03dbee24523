"""What a network must do, counted before anything runs: parameters, MACs, bytes, roofline time.

A MAC is one multiplication and one addition, 2 FLOP. The bytes are the least that must cross the
memory bus: each layer reads its input and its weights once and writes its output once. Copies that
an algorithm adds, such as im2col's patches, are not in them; that is one reason why a measured
time is longer than the roofline's.

How many bytes a value takes, weights and activations alike, is for the caller to say: 4 in
float32, 2 in float16, 0.125 for one bit. The scales of a format such as int8 are not counted. A
layer whose weights are stored in few bits (StoredLinear, a folded one) says what these really take.
"""

import dataclasses
import itertools
import math
from typing import Any

from fastdl_lib.core.checks import check_number, check_whole_number
from fastdl_lib.measuring.evidence import Column, Measurement, Provenance, Table

Network = Any  # a fastdl_lib.nn.network.Network, which stands above this package

KINDS = ("conv", "fc", "pool", "norm", "relu", "other")
"""The kinds of layers that shares are summed over, in the order they are drawn."""


@dataclasses.dataclass(frozen=True)
class Ceilings:
    """The two speed limits of a machine, as chapter 00 measures them."""

    gemm_gflops: Measurement
    """The fastest large float32 matrix product, GFLOP/s."""
    copy_gb_per_s: Measurement
    """Bytes read plus bytes written by a large copy, GB/s."""

    def __post_init__(self) -> None:
        for m, unit in ((self.gemm_gflops, "GFLOP/s"), (self.copy_gb_per_s, "GB/s")):
            if m.unit != unit or min(m.samples) <= 0:
                raise ValueError(f"a ceiling is in {unit}, above 0; got {m.value()} {m.unit}.")

    @property
    def ridge(self) -> float:
        """FLOP per byte above which the product, not the memory, is the limit."""
        return self.gemm_gflops.median / self.copy_gb_per_s.median

    def attainable_gflops(self, intensity: float) -> float:
        """The roof: the most GFLOP/s that code with ``intensity`` FLOP per byte can reach.

        Source: Williams, Waterman, Patterson, "Roofline", CACM 52(4), 2009.
        """
        return min(self.gemm_gflops.median, intensity * self.copy_gb_per_s.median)


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """What one layer costs for one batch, counted."""

    name: str
    kind: str
    output_shape: tuple[int, ...]
    """Of one image, without the batch axis."""
    parameters: int
    macs: int
    bytes: int

    @property
    def intensity(self) -> float:
        """FLOP per byte that must move; 0 for layers without MACs."""
        return 2 * self.macs / self.bytes if self.bytes else 0.0

    def roofline_ms(self, ceilings: Ceilings) -> float:
        """The least time the machine needs, ms: the longer of computing and moving."""
        compute_ms = 2 * self.macs / ceilings.gemm_gflops.median * 1e-6
        memory_ms = self.bytes / ceilings.copy_gb_per_s.median * 1e-6
        return max(compute_ms, memory_ms)


def layer_costs(network: Network, batch: int = 1, *, bytes_per_value: float = 4) -> list[LayerCost]:
    """Count every layer's parameters, MACs and bytes for one forward pass of ``batch`` images.

    The layers say what they cost; each one's bytes are rounded up to whole ones. Flatten moves
    nothing, and Dropout does nothing outside training: both count 0. MACs are products with
    weights, as papers count them.

    Raises: TypeError, ValueError where a layer cannot say its costs in whole numbers from 0.

    >>> from fastdl_lib.nn.zoo import deep_convnet
    >>> sum(cost.parameters for cost in layer_costs(deep_convnet()))
    123552
    """
    batch = check_whole_number("batch", batch, 1)
    check_number("bytes_per_value", bytes_per_value, low=0, low_included=False)
    costs = []
    for name, layer in network.layers.items():
        input_shape = network.input_shape_of(name)
        macs = check_whole_number(f"{name}.macs()", layer.macs(input_shape), 0)
        moved = layer.bytes_moved(input_shape, batch, bytes_per_value)
        moved = check_whole_number(f"{name}.bytes_moved()", moved, 0)
        shape, parameters = network.shapes[name], layer.parameter_count
        costs.append(LayerCost(name, layer.kind, shape, parameters, batch * macs, moved))
    return costs


def cost_table(network: Network, batch: int = 1, ceilings: Ceilings | None = None) -> Table:
    """The counts of :func:`layer_costs` as a table, with shares; roofline times if given ceilings.

    >>> from fastdl_lib.nn.zoo import deep_convnet
    >>> cost_table(deep_convnet()).rows[-1]["macs"]
    8772340
    """
    costs = layer_costs(network, batch)
    parameters, macs, moved = (
        sum(getattr(cost, key) for cost in costs) for key in ("parameters", "macs", "bytes")
    )
    rows = [
        {
            "layer": cost.name,
            "output": cost.output_shape,
            "parameters": cost.parameters,
            "parameters_pct": 100 * cost.parameters / max(1, parameters),
            "macs": cost.macs,
            "macs_pct": 100 * cost.macs / max(1, macs),
            "megabytes": cost.bytes / 1e6,
            "intensity": cost.intensity,
            "roofline_ms": cost.roofline_ms(ceilings) if ceilings else None,
        }
        for cost in (*costs, LayerCost("all", "", (), parameters, macs, moved))
        if cost.bytes or cost.macs or cost.parameters or cost.name == "all"
    ]
    all_ms = sum(row["roofline_ms"] for row in rows[:-1]) if ceilings else None
    rows[-1] |= {"output": "", "intensity": None, "roofline_ms": all_ms}
    headings = [
        ("parameters", "", ""), ("parameters_pct", "of all parameters", "%"),
        ("macs", "MACs", ""), ("macs_pct", "of all MACs", "%"),
        ("megabytes", "moved at least", "MB"), ("intensity", "intensity", "FLOP/byte"),
    ]  # fmt: skip
    if ceilings:
        headings.append(("roofline_ms", "roofline time", "ms"))
    columns = (Column(*heading, Provenance.COMPUTED) for heading in headings)
    images = "1 image" if batch == 1 else f"{batch} images"
    caption = f"{network.name}, forward pass of {images} (computed)"
    return Table((Column("layer"), Column("output"), *columns), tuple(rows), caption)


def memory_bytes(
    network: Network, batch: int, *, training: bool = False, bytes_per_value: float = 4
) -> int:
    """Count the memory that ``batch`` images need, weights included; rounded up to whole bytes.

    Forwards: the weights, and the input and output of the layer where both are largest together.
    In a training step: the weights, their gradients and the optimiser's memory (momentum), a second
    gradient of the largest weight, which is computed while the old one is still there, and the
    output of every layer, as if each kept its own. What an algorithm lays out besides, such as
    patches, is not counted, nor are the float32 copies that mixed precision keeps.

    Raises: ValueError for a training step of layers that do not learn, such as folded ones.

    >>> from fastdl_lib.nn.zoo import deep_convnet
    >>> memory_bytes(deep_convnet(), 0), memory_bytes(deep_convnet(), 1, training=True)
    (494208, 2102120)
    """
    batch = check_whole_number("batch", batch, 0)
    check_number("bytes_per_value", bytes_per_value, low=0, low_included=False)
    images = [math.prod(network.input_shape) * bytes_per_value]
    for name, layer in network.layers.items():
        images.append(layer.output_bytes(network.input_shape_of(name), bytes_per_value))
    stored = sum(layer.stored_bytes(bytes_per_value) for layer in network.layers.values())
    if not training:
        return math.ceil(stored + batch * max(map(sum, itertools.pairwise(images))))
    for name, layer in network.layers.items():
        if layer.parameter_count > sum(array.size for array in layer.parameters.values()):
            raise ValueError(f"{name} ({type(layer).__name__}) does not learn: no training step.")
    largest = max((array.size for array in network.parameters.values()), default=0)
    learned = 2 * network.parameter_count + largest
    return math.ceil(stored + learned * bytes_per_value + batch * sum(images))


def training_days(
    images_per_s: Measurement, *, epochs: float = 90, images: int = 1_281_167
) -> Measurement:
    """The days a training takes at the speed ``images_per_s``, *computed*; its spread survives.

    By default 90 epochs, as for AlexNet (Krizhevsky et al. 2012), of ILSVRC-2012's training images.
    The result's ``source`` and its condition ``speed_is`` name the speed's provenance.

    Raises: TypeError, ValueError for a speed not in images/s, or a number that is not above 0.

    >>> print(training_days(Measurement.published("Caffe on a Titan", "images/s", 195, "Caffe")))
    6.84 days (computed)
    """
    if images_per_s.unit != "images/s":
        got = f"{images_per_s.name!r} in {images_per_s.unit}"
        raise ValueError(f"training_days() takes images/s, got {got}.")
    for name, value in (("epochs", epochs), ("images", images)):
        check_number(name, value, low=0, low_included=False)
    if min(images_per_s.samples) <= 0:
        raise ValueError(f"{images_per_s.name!r} holds a speed of {min(images_per_s.samples)}.")
    seen = float(epochs) * float(images)  # NumPy's whole numbers may be too small for it
    days = images_per_s.convert(lambda speed: seen / speed / 86_400, "days")
    source = f"from {images_per_s.value()} images/s, {images_per_s.label}"
    speed = {"images_per_s": images_per_s.median, "speed_is": str(images_per_s.provenance)}
    conditions = {**images_per_s.conditions, "epochs": epochs, "images": images, **speed}
    computed = {"provenance": Provenance.COMPUTED, "source": source, "conditions": conditions}
    return dataclasses.replace(days, **computed)
