"""Engines for inference that a user could install: ONNX Runtime, OpenVINO and JAX.

Each runs a network of ``fastdl_lib`` on the same weights, in float32 unless asked otherwise. One
that is not installed is left out, and :func:`engines` says so.
"""

import os
from collections.abc import Callable

import numpy as np

from fastdl_lib.nn.layers import Conv2d, Dropout, Flatten, Layer, Linear, MaxPool2d, ReLU
from fastdl_lib.nn.network import Network
from fastdl_lib.nn.norms import LocalResponseNorm

Run = Callable[[], np.ndarray]

ONNX_RUNTIME, OPENVINO, JAX = "ONNX Runtime", "OpenVINO, held to float32", "JAX, jit"
OPENVINO_AS_IT_LIKES = "OpenVINO, in the precision it takes by itself"


def engines(network: Network, images: np.ndarray, threads: int) -> dict[str, Run]:
    """A pass through the network by every engine that is here, on so many threads."""
    made: dict[str, Run] = {}
    for name, make in ((ONNX_RUNTIME, onnx_runtime), (OPENVINO, openvino), (JAX, jax)):
        try:
            made[name] = make(network, images, threads)
        except ImportError as error:
            print(f"{name} is left out: {error}.")
    return made


def _node(layer: Layer) -> tuple[str, dict[str, object]]:
    """ONNX's operator for a layer, and its attributes."""
    match layer:
        case Conv2d():
            window = {"strides": [layer.stride] * 2, "pads": [layer.padding] * 4}
            return "Conv", {"group": layer.groups, **window}
        case MaxPool2d():
            return "MaxPool", {"kernel_shape": [layer.kernel] * 2, "strides": [layer.stride] * 2}
        case Linear():
            return "Gemm", {"transB": 1}
        case LocalResponseNorm():
            # ONNX takes the mean over the neighbours where the paper takes the sum.
            alpha = layer.alpha * layer.size
            return "LRN", {
                "size": layer.size, "alpha": alpha, "beta": layer.beta, "bias": layer.k,
            }  # fmt: skip
        case ReLU():
            return "Relu", {}
        case Flatten():
            return "Flatten", {}
        case Dropout():
            return "Identity", {}
    raise TypeError(f"no operator of ONNX is known for {type(layer).__name__}.")


def onnx_model(network: Network, batch: int) -> bytes:
    """The network as an ONNX file for one batch size."""
    from onnx import TensorProto, helper, numpy_helper

    nodes, weights, before = [], [], "images"
    for name, layer in network.layers.items():
        operator, attributes = _node(layer)
        given = [before]
        for parameter, array in layer.parameters.items():
            given.append(f"{name}.{parameter}")
            weights.append(numpy_helper.from_array(np.ascontiguousarray(array), given[-1]))
        nodes.append(helper.make_node(operator, given, [name], name, **attributes))
        before = name
    shapes = {"images": network.input_shape, before: network.shapes[before]}
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, (batch, *shape))
        for name, shape in shapes.items()
    ]
    graph = helper.make_graph(nodes, network.name, ends[:1], ends[1:], weights)
    opset = [helper.make_opsetid("", 20)]
    return helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()


def onnx_runtime(network: Network, images: np.ndarray, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    model = onnx_model(network, len(images))
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"images": images})[0]


def openvino(network: Network, images: np.ndarray, threads: int, precision: str = "f32") -> Run:
    """``precision``: f32; or "" for what OpenVINO takes by itself: bfloat16 where a CPU has it."""
    import openvino as ov

    hints = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    if precision:
        hints["INFERENCE_PRECISION_HINT"] = precision
    core = ov.Core()
    request = core.compile_model(
        core.read_model(onnx_model(network, len(images))), "CPU", hints
    ).create_infer_request()
    return lambda: next(iter(request.infer({"images": images}, share_inputs=True).values()))


def jax(network: Network, images: np.ndarray, threads: int) -> Run:
    """The network as one jitted function. JAX has no setting for threads: it takes those that the
    process may run on when it starts, so another number is refused."""
    if threads != len(os.sched_getaffinity(0)):
        raise ImportError(f"it takes all cores, not {threads}; start it with taskset instead")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax
    import jax.numpy as jnp
    from jax import lax

    def layer_in_jax(layer: Layer, given: dict[str, object], x: object) -> object:
        match layer:
            case Conv2d():
                made = lax.conv_general_dilated(
                    x, given["weight"], (layer.stride,) * 2, [(layer.padding,) * 2] * 2,
                    feature_group_count=layer.groups,
                )  # fmt: skip
                return made + given["bias"][:, None, None]
            case MaxPool2d():
                window, steps = (1, 1, *[layer.kernel] * 2), (1, 1, *[layer.stride] * 2)
                return lax.reduce_window(x, -jnp.inf, lax.max, window, steps, "VALID")
            case Linear():
                return x @ given["weight"].T + given["bias"]
            case LocalResponseNorm():
                reach = layer.size // 2
                squares = jnp.pad(x * x, ((0, 0), (reach, reach), (0, 0), (0, 0)))
                channels = x.shape[1]
                energy = sum(squares[:, step : step + channels] for step in range(layer.size))
                return x / (layer.k + layer.alpha * energy) ** layer.beta
            case ReLU():
                return jnp.maximum(x, 0)
            case Flatten():
                return x.reshape(len(x), -1)
        return x

    @jax.jit
    def forward(weights: dict[str, dict[str, object]], x: object) -> object:
        for name, layer in network.layers.items():
            x = layer_in_jax(layer, weights[name], x)
        return x

    weights = {
        name: {key: jnp.asarray(array) for key, array in layer.parameters.items()}
        for name, layer in network.layers.items()
    }
    x = jnp.asarray(images)
    return lambda: np.asarray(forward(weights, x).block_until_ready())
