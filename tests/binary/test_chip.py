"""The network in C: Python's logits, bit for bit, by every compiler here; nothing read beyond."""

import json
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers import as_bytes, byte_images, needs_a_compiler, odd_binary_network, shaken

from fastdl_lib.binary.export_c import CNetwork, compile_c, export_c
from fastdl_lib.binary.inference import fold
from fastdl_lib.binary.layers import BinaryConv2d, BinaryLinear, PixelBytes, Sign
from fastdl_lib.binary.networks import binary_deep_convnet, binary_mlp
from fastdl_lib.core import compiler
from fastdl_lib.core.datasets import data_folder
from fastdl_lib.nn.layers import Flatten, MaxPool2d
from fastdl_lib.nn.network import Network
from fastdl_lib.nn.norms import BatchNorm

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


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
        ("fc", BinaryLinear(65 * 5 * 4, 3, rng=rng)),
    ]
    return shaken(Network("otheré */ net", layers, (2, 10, 8)))


def sixty_three():
    """What gcc 11 and 12 get wrong where they turn the loop over 63 outputs into AVX-512."""
    rng = np.random.default_rng(0)
    layers = [("pixels", PixelBytes()), ("conv1", BinaryConv2d(1, 64, 3, rng=rng))]
    layers += [("norm1", BatchNorm(64)), ("sign1", Sign())]
    layers += [("conv2", BinaryConv2d(64, 63, 1, padding=1, rng=rng)), ("norm2", BatchNorm(63))]
    layers += [("sign2", Sign()), ("flatten", Flatten()), ("fc", BinaryLinear(2268, 3, rng=rng))]
    return shaken(Network("63", layers, (1, 6, 6)))


def one_product():
    layers = [("pixels", PixelBytes()), ("flatten", Flatten())]
    layers.append(("fc", BinaryLinear(30, 4, rng=np.random.default_rng(0))))
    return Network("one", layers, (1, 5, 6))


NETWORKS = {
    "other": other_convnet, "sixty_three": sixty_three, "one": one_product,
    "odd": lambda: odd_binary_network(8),
}  # fmt: skip

MAIN = """
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
@PROTOTYPES@
static void run(void (*logits)(const uint8_t *, float *), int (*classify)(const uint8_t *),
                size_t size, size_t classes)
{
    uint8_t *pixels = malloc(size);
    float *values = malloc(classes * sizeof *values);
    for (int image = 0; image < @IMAGES@; ++image) {
        if (fread(pixels, 1, size, stdin) != size) return;
        logits(pixels, values);
        for (size_t o = 0; o < classes; ++o) {
            uint32_t bits;
            memcpy(&bits, values + o, sizeof bits);
            printf("%lx ", (unsigned long) bits);
        }
        printf("%d\\n", classify(pixels));
    }
    free(pixels);
    free(values);
}
int main(void) { @CALLS@ return 0; }
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """All networks in C and a program of them, what it reads, what it must print."""
    folder, count = tmp_path_factory.mktemp("ünd spaces"), 6
    prototypes, calls, pixels, printed = "", "", b"", []
    for name, make in NETWORKS.items():
        network = make()
        file = export_c(network, folder / f"{name}.c", name=name)
        x = byte_images(np.random.default_rng(1), count, network.input_shape)
        prototypes += f"void {name}_logits(const uint8_t *pixels, float *logits);\n"
        prototypes += f"int {name}_classify(const uint8_t *pixels);\n"
        calls += f"run({name}_logits, {name}_classify, {x[0].size}, {file.classes}); "
        pixels += as_bytes(x).tobytes()
        for row in network.forward(x):
            bits = " ".join(f"{bits:x}" for bits in row.view(np.uint32))
            printed.append(f"{bits} {row.argmax()}")
    text = MAIN.replace("@IMAGES@", str(count)).replace("@CALLS@", calls)
    (folder / "main.c").write_text(text.replace("@PROTOTYPES@", prototypes))
    return [folder / f"{name}.c" for name in ("main", *NETWORKS)], pixels, printed


WARNINGS = "-std=c99 -Wall -Wextra -Wshadow -Wconversion -pedantic -Werror"
ELSEWHERE = {  # without the programs these need, they are skipped: Debian's packages beside them
    "gcc -m32 -O3": "gcc-multilib",
    "s390x-linux-gnu-gcc -static -O2": "gcc-s390x-linux-gnu libc6-dev-s390x-cross qemu-user",
    "mips-linux-gnu-gcc -static -O3": "gcc-mips-linux-gnu libc6-dev-mips-cross qemu-user",
    "powerpc64-linux-gnu-gcc -static -O2":
        "gcc-powerpc64-linux-gnu libc6-dev-ppc64-cross qemu-user",
}  # fmt: skip
EMULATORS = {"s390x": "qemu-s390x", "mips": "qemu-mips", "powerpc64": "qemu-ppc64"}
SANITIZED = "-g -O1 -fsanitize=address,undefined -fno-sanitize-recover=all"
BUILDS = [
    *(f"gcc {flags}" for flags in ("-O0", "-O2", "-O3", "-O3 -march=native", SANITIZED)),
    *(f"clang {flags}" for flags in ("-O0", "-O3 -march=native", SANITIZED)), *ELSEWHERE,
]  # fmt: skip


@pytest.mark.parametrize("build", BUILDS)
def test_every_compiler_makes_pythons_logits(build, exported, tmp_path):
    sources, pixels, printed = exported
    compile_with, *flags = build.split()
    run = [EMULATORS[key] for key in EMULATORS if compile_with.startswith(key)]
    program, trial = tmp_path / "program", tmp_path / "trial.c"
    missing = f"{build} is not here: apt install {ELSEWHERE.get(build, compile_with)}"
    if not all(map(shutil.which, [compile_with, *run])):
        pytest.skip(missing)
    command = [compile_with, *flags, "-o", program]
    told = subprocess.run([*command, *WARNINGS.split(), *sources], capture_output=True, text=True)
    if told.returncode:
        trial.write_text('#include <stdio.h>\nint main(void) { return puts("") < 0; }\n')
        if subprocess.run([*command, trial], capture_output=True).returncode:
            pytest.skip(missing)
    assert told.returncode == 0 and not told.stderr, told.stderr
    ran = subprocess.run([*run, program], input=pixels, capture_output=True)
    assert ran.returncode == 0 and not ran.stderr, ran.stderr.decode()
    assert ran.stdout.decode().splitlines() == printed


@pytest.mark.parametrize("make", [other_convnet, one_product, binary_deep_convnet])
def test_the_file_needs_nothing_and_its_constants_are_counted(make, tmp_path):
    file = export_c(fold(shaken(make())), tmp_path / "net.c")
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


# --- compiled and loaded ------------------------------------------------------------------------


@needs_a_compiler
def test_a_file_that_is_written_anew_is_compiled_anew(tmp_path, monkeypatch):
    """Under a name that a shell would mind, from elsewhere."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a b").mkdir()
    files = []
    for seed in (0, 1):
        network = shaken(binary_mlp(seed, hidden=20))
        x = byte_images(np.random.default_rng(1), 5, network.input_shape)
        monkeypatch.chdir(tmp_path)
        files.append(export_c(network, "a b/-o ünd.c"))
        monkeypatch.chdir("/")
        compiled = compile_c(files[-1])
        assert np.array_equal(compiled.logits(as_bytes(x)), network.forward(x)), seed
    with pytest.raises(ValueError, match=r"ünd\.c is not what export_c wrote any more: export it"):
        compile_c(files[0])


def other_compiler(tmp_path, monkeypatch, script):
    """Let a shell script stand for the machine's compiler, which it calls ``$cc``."""
    if sys.platform != "linux":
        pytest.skip("GNU's shell and sed stand for the compiler")
    path = tmp_path / "mycc"
    path.write_text(f"#!/bin/sh\ncc={compiler.c_compiler()}\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(compiler, "c_compiler", lambda: str(path))


# The last line of the network with another answer, as a compiler's fault would have it.
SPOILT = r"""
for last; do :; done
sed -i 's/logits\[o\] = value;/logits[o] = value + (o == 1);/' "$last"
exec $cc "$@"
"""


OTHERS = [  # what it does, and the flags that are left in the end, or what is said
    ('exec $cc "$@"', "-O3 -march=native"),
    (f'case "$*" in *-fno-tree-loop*) exec $cc "$@";; *) {SPOILT} esac',
     "-O3 -march=native -fno-tree-loop-vectorize"),
    (f'case "$*" in *-O2*) exec $cc "$@";; *) {SPOILT} esac', "-O3 -march=native -O2"),
    ('case "$*" in *-march*) echo which? >&2; exit 1;; *) exec $cc "$@";; esac', "-O3 -O2"),
    (SPOILT, "net.c: 32 of 32 images get other answers than in Python"),
    ("kill -SEGV $$", "net.c: mycc does not take net.c:\nit ended with -11 and said nothing"),
    ("exit 0", "net.c: mycc does not take net.c:\nit ended with 0"),
    ("echo no such flag >&2; exit 1", "net.c: mycc does not take net.c:\nno such flag"),
]  # fmt: skip


@needs_a_compiler
@pytest.mark.parametrize(("script", "end"), OTHERS)
def test_the_flags_are_those_with_which_the_answers_are_pythons(script, end, tmp_path, monkeypatch):
    other_compiler(tmp_path, monkeypatch, script)
    file = export_c(sixty_three(), tmp_path / "net.c")
    if not end.startswith("-"):
        with pytest.raises(RuntimeError, match=re.escape(f"no C network from {end}")):
            compile_c(file)
        return
    made = compile_c(file)
    assert " ".join(made.flags).endswith(f"-pedantic {end}")
    images, logits = file.checked
    assert np.array_equal(made.logits(images), logits)


def test_chapter_06_replays_its_recording_where_no_compiler_serves(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compiler, "c_compiler", lambda: None)
    notebook = json.loads((NOTEBOOKS / "06_binarized_networks.ipynb").read_text("utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"]]
    first = next(n for n, cell in enumerate(cells) if "import compile_c" in cell)
    files = {n: export_c(odd_binary_network(1), tmp_path / f"{n}.c") for n in ("2048", "512")}
    names = {"np": np, "files": files, "test_images": np.zeros(3), "data_folder": data_folder}
    for cell in cells[first : first + 2]:
        exec(cell, names)
    printed = capsys.readouterr().out
    assert "A recording is shown below: no C network from 2048.c: " in printed
    assert "digits512, equal: 10,000 answers (recorded on" in printed


# --- what is given ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    if compiler.c_compiler() is None:
        pytest.skip("there is no C compiler")
    return compile_c(export_c(shaken(binary_mlp(hidden=70)), tmp_path_factory.mktemp("c") / "n.c"))


def test_images_may_lie_in_memory_as_they_like(compiled):
    images, logits = compiled.file.checked
    wide = np.zeros((32, 1, 28, 56), np.uint8)
    wide[..., ::2] = images
    for given in (images[::-1], np.asfortranarray(images)[::-1], wide[..., ::2][::-1]):
        assert np.array_equal(compiled.logits(given), logits[::-1])
        assert np.array_equal(compiled.predict_classes(given), logits[::-1].argmax(axis=1))
    assert compiled.logits(images[:0]).shape == (0, 10)
    assert compiled.predict_classes(images[:0]).shape == (0,)


def test_two_threads_do_not_meet_in_its_buffers(compiled):
    images, logits = compiled.file.checked
    images = np.tile(images, (10, 1, 1, 1))
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(compiled.logits, [images] * 4):
            assert np.array_equal(found, np.tile(logits, (10, 1)))


REFUSED = [
    *((np.zeros((1, 1, 28, 28), dtype), TypeError, f"as uint8, 0 to 255, got {np.dtype(dtype)}")
      for dtype in (np.float32, np.int8, bool, ">u2")),
    *((np.zeros(shape, np.uint8), ValueError, r"takes images \(N, 1, 28, 28\), got")
      for shape in ((1, 1, 14, 14), (1, 3, 28, 28), (28, 28), (1, 784), (), (1, 1, 1, 28, 28))),
    (np.zeros((1, 28, 28), np.uint8), ValueError, r"For one image use x\[None\]"),
    ([[0] * 28] * 28, TypeError, "list"), (None, TypeError, "None"),
]  # fmt: skip


@pytest.mark.parametrize("call", [CNetwork.logits, CNetwork.predict_classes])
def test_other_images_are_refused(call, compiled):
    for images, error, message in REFUSED:
        with pytest.raises(error, match=message):
            call(compiled, images)


def test_names_that_c_cannot_use_are_refused(tmp_path):
    network = binary_mlp(hidden=8)
    with pytest.raises(ValueError, match=r"C is stored as \.c, got the name 'net\.txt'"):
        export_c(network, tmp_path / "net.txt")
    for name in ("2 nets", "", "né", "a-b"):
        with pytest.raises(ValueError, match="name must be letters, digits and _"):
            export_c(network, tmp_path / "net.c", name=name)
    assert not list(tmp_path.iterdir())


def test_logits_that_are_no_numbers_are_refused(tmp_path):
    folded = fold(binary_mlp(hidden=8))
    folded.buffers["fc4.factor"][3] = np.nan
    with pytest.raises(ValueError, match="has no finite logits"):
        export_c(folded, tmp_path / "net.c")
    assert not list(tmp_path.iterdir())
