"""The network in C: no warning, nothing for the sanitizers, and Python's answers, bit for bit."""

import re
import shutil
import subprocess

import numpy as np
import pytest
from helpers import SEEDS, byte_images, needs_a_compiler, shaken
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdl_lib.binary.export_c import C_FLAGS, compile_c, export_c
from fastdl_lib.binary.inference import fold
from fastdl_lib.binary.layers import BinaryConv2d, BinaryLinear, PixelBytes, Sign
from fastdl_lib.binary.networks import binary_deep_convnet, binary_mlp
from fastdl_lib.core import compiler
from fastdl_lib.core.compiler import c_compiler
from fastdl_lib.core.datasets import mnist
from fastdl_lib.nn.layers import Flatten, MaxPool2d
from fastdl_lib.nn.network import Network
from fastdl_lib.nn.norms import BatchNorm
from fastdl_lib.nn.optimizers import Adam
from fastdl_lib.nn.training import fit, predict_classes


def as_bytes(x):
    return np.rint(255 * x).astype(np.uint8)


def other_convnet():
    """Overlapping pools, +1 around the images, strides, more than 64 channels, no last norm."""
    rng = np.random.default_rng(0)
    layers = [
        ("pixels", PixelBytes()),
        ("conv 1", BinaryConv2d(2, 70, 3, padding=2, padding_value=0.0, stride=2, rng=rng)),
        ("pool1", MaxPool2d(3, stride=1)),
        ("norm1", BatchNorm(70)),
        ("sign1", Sign()),
        ("conv 1 ", BinaryConv2d(70, 65, 2, padding=1, padding_value=1.0, rng=rng)),
        ("sign2", Sign()),
        ("flatten", Flatten()),
        ("fc", BinaryLinear(65 * 5 * 4, 3, scaled=True, rng=rng)),
    ]
    return Network("otheré */ net", layers, (2, 10, 8))


NETWORKS = {
    "mlp": lambda: binary_mlp(hidden=100),
    "one hidden layer, scaled": lambda: binary_mlp(hidden=64, depth=1, scaled=True),
    "convnet": binary_deep_convnet,
    "convnet, scaled": lambda: binary_deep_convnet(scaled=True),
    "other convnet": other_convnet,
    "one product": lambda: Network(
        "one",
        [
            ("pixels", PixelBytes()),
            ("flatten", Flatten()),
            ("fc", BinaryLinear(30, 4, rng=np.random.default_rng(0))),
        ],
        (1, 5, 6),
    ),
}


@needs_a_compiler
@pytest.mark.parametrize("flags", [(), ("-march=native",)])
@pytest.mark.parametrize("kind", NETWORKS)
def test_c_gives_pythons_logits(kind, flags, tmp_path):
    network = shaken(NETWORKS[kind]())
    x = byte_images(np.random.default_rng(1), 8, network.input_shape)
    compiled = compile_c(export_c(network, tmp_path / "net.c", name="digits"), flags)
    expected = network.forward(x)
    assert np.array_equal(compiled.logits(as_bytes(x)), expected)
    assert np.array_equal(compiled.predict_classes(as_bytes(x)), expected.argmax(axis=1))


@needs_a_compiler
def test_all_test_images_have_the_same_answer(tmp_path):
    x, labels = (array[:6000] for array in mnist("train"))
    network = binary_mlp(hidden=96, depth=2)
    fit(network, x, labels, epochs=2, optimizer=Adam(5e-3), progress=False)
    test, labels = mnist("test")
    answers = compile_c(export_c(network, tmp_path / "net.c")).predict_classes(as_bytes(test))
    assert np.array_equal(answers, predict_classes(network, test))
    assert (answers == labels).mean() > 0.8


HARNESS = """
#include <stdio.h>
#include "net.c"
int main(void)
{
    static uint8_t pixels[@PIXELS@];
    while (fread(pixels, 1, sizeof pixels, stdin) == sizeof pixels)
        printf("%d\\n", network_classify(pixels));
    return 0;
}
"""


@needs_a_compiler
@pytest.mark.parametrize("kind", NETWORKS)
def test_the_sanitizers_find_nothing(kind, tmp_path):
    network = shaken(NETWORKS[kind]())
    x = byte_images(np.random.default_rng(1), 5, network.input_shape)
    export_c(network, tmp_path / "net.c")
    (tmp_path / "main.c").write_text(HARNESS.replace("@PIXELS@", str(x[0].size)))
    flags = [flag for flag in C_FLAGS if flag != "-O3"]
    sanitizers = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    program = tmp_path / "program"
    told = subprocess.run(
        [c_compiler(), *flags, *sanitizers, "-o", program, tmp_path / "main.c"],
        capture_output=True,
        text=True,
    )
    if "cannot find" in told.stderr:
        pytest.skip("the compiler has no sanitizers")
    assert told.returncode == 0 and not told.stderr, told.stderr
    ran = subprocess.run([program], input=as_bytes(x).tobytes(), capture_output=True)
    assert ran.returncode == 0 and not ran.stderr, ran.stderr.decode()
    assert list(map(int, ran.stdout.split())) == network.forward(x).argmax(axis=1).tolist()


@pytest.mark.skipif(shutil.which("clang") is None, reason="there is no clang")
def test_clang_gives_the_same_logits(tmp_path, monkeypatch):
    """It joins products and sums where it may; not ours."""
    monkeypatch.setattr(compiler, "c_compiler", lambda: "clang")
    network = shaken(binary_mlp(hidden=70, scaled=True))
    x = byte_images(np.random.default_rng(1), 50, network.input_shape)
    compiled = compile_c(export_c(network, tmp_path / "net.c"))
    assert np.array_equal(compiled.logits(as_bytes(x)), network.forward(x))


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_file_needs_nothing_and_its_constants_are_counted(kind, tmp_path):
    network = shaken(NETWORKS[kind]())
    file = export_c(fold(network), tmp_path / "net.c")
    text = file.path.read_text()
    assert re.findall(r"#include (.*)", text) == ["<stdint.h>"]
    assert not re.search(r"\b(malloc|double|printf)\b", text)
    before_logits = text[text.index("static void") : text.index("void network_logits")]
    assert "float" not in re.sub(r"static const float \w+\[\d+\]", "", before_logits)
    sizes = {"uint64_t": 8, "int32_t": 4, "float": 4}
    arrays = re.findall(r"^(?:    )?static (const )?(\w+) \w+(?:\[(\d+)\])?\[(\d+)\]", text, re.M)
    for constant, expected in (("const ", file.constants_bytes), ("", file.buffers_bytes)):
        found = [(k, int(m or 1) * int(n)) for c, k, m, n in arrays if c == constant]
        assert sum(sizes[kind] * count for kind, count in found) == expected


@needs_a_compiler
@settings(max_examples=5)
@given(hidden=st.integers(1, 130), depth=st.integers(1, 3), seed=SEEDS)
def test_networks_of_any_size(hidden, depth, seed, tmp_path_factory):
    network = shaken(binary_mlp(seed, hidden, depth), seed)
    x = byte_images(np.random.default_rng(seed), 3, network.input_shape)
    path = tmp_path_factory.mktemp("c") / "net.c"
    assert np.array_equal(
        compile_c(export_c(network, path)).logits(as_bytes(x)), network.forward(x)
    )


@needs_a_compiler
def test_a_file_that_is_written_anew_is_compiled_anew(tmp_path):
    for seed in (0, 1):
        network = shaken(binary_mlp(seed, hidden=20))
        x = byte_images(np.random.default_rng(1), 5, network.input_shape)
        compiled = compile_c(export_c(network, tmp_path / "net.c"))
        assert np.array_equal(compiled.logits(as_bytes(x)), network.forward(x)), seed


# --- refusals -----------------------------------------------------------------------------------


def test_names_that_c_cannot_use_are_refused(tmp_path):
    network = binary_mlp(hidden=8)
    with pytest.raises(ValueError, match=r"C is stored as \.c, got the name 'net\.txt'"):
        export_c(network, tmp_path / "net.txt")
    with pytest.raises(ValueError, match="name must be letters, digits and _"):
        export_c(network, tmp_path / "net.c", name="2 nets")
    assert not list(tmp_path.iterdir())


@needs_a_compiler
def test_what_the_compiler_says_is_passed_on(tmp_path):
    file = export_c(binary_mlp(hidden=8), tmp_path / "net.c")
    file.path.write_text(file.path.read_text() + "int unfinished(")
    with pytest.raises(RuntimeError, match=r"does not take net\.c:\n"):
        compile_c(file)


@needs_a_compiler
def test_pixels_must_be_bytes(tmp_path):
    compiled = compile_c(export_c(binary_mlp(hidden=8), tmp_path / "net.c"))
    with pytest.raises(TypeError, match="takes pixels as uint8, 0 to 255, got float32"):
        compiled.logits(np.zeros((1, 1, 28, 28), np.float32))
    with pytest.raises(ValueError, match="takes contiguous images"):
        compiled.logits(np.zeros((4, 1, 28, 28), np.uint8)[::2])
    for shape in ((1, 1, 14, 14), (1, 3, 28, 28), (28, 28)):
        with pytest.raises(ValueError, match=r"this C network takes images \(N, 1, 28, 28\), got"):
            compiled.predict_classes(np.zeros(shape, np.uint8))
