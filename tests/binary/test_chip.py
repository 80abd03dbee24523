"""The network in C: Python's logits, bit for bit, by every compiler here; nothing read beyond."""

import json
import re
import shutil
import subprocess
import sys
import threading
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
        ("fc", BinaryLinear(65 * 5 * 4, 3, scaled=True, rng=rng)),
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
    **{f"odd{seed}": lambda seed=seed: odd_binary_network(seed) for seed in (3, 8)},
}  # fmt: skip

HARNESS = """
#include <stdint.h>
#include <stdio.h>
#include <string.h>
void @NAME@_logits(const uint8_t *pixels, float *logits);
int @NAME@_classify(const uint8_t *pixels);
static void @NAME@(void)
{
    static uint8_t pixels[@PIXELS@];
    float logits[@CLASSES@];
    for (int image = 0; image < @IMAGES@; ++image) {
        if (fread(pixels, 1, sizeof pixels, stdin) != sizeof pixels) return;
        @NAME@_logits(pixels, logits);
        for (int o = 0; o < @CLASSES@; ++o) {
            uint32_t bits;
            memcpy(&bits, logits + o, sizeof bits);
            printf("%lx ", (unsigned long) bits);
        }
        printf("%d\\n", @NAME@_classify(pixels));
    }
}
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder of all networks in C and a program of them, what it reads, what it must print."""
    folder, count = tmp_path_factory.mktemp("ünd spaces"), 6
    harness, pixels, printed = "", [], []
    for name, make in NETWORKS.items():
        network = make()
        file = export_c(network, folder / f"{name}.c", name=name)
        x = byte_images(np.random.default_rng(1), count, network.input_shape)
        logits = network.forward(x)
        numbers = {"NAME": name, "PIXELS": x[0].size, "CLASSES": file.classes, "IMAGES": count}
        text = HARNESS
        for key, value in numbers.items():
            text = text.replace(f"@{key}@", str(value))
        harness += text
        pixels.append(as_bytes(x).tobytes())
        for row in logits:
            printed.append(" ".join(f"{bits:x}" for bits in row.view(np.uint32)))
            printed[-1] += f" {row.argmax()}"
    calls = " ".join(f"{name}();" for name in NETWORKS)
    (folder / "main.c").write_text(f"{harness}int main(void) {{ {calls} return 0; }}\n")
    return folder, b"".join(pixels), printed


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
    *(f"{cc} {level}" for cc in ("gcc", "clang") for level in ("-O0", "-O1", "-O2", "-O3")),
    *(f"{cc} {level} -march=native" for cc in ("gcc", "clang") for level in ("-O2", "-O3")),
    *(f"{cc} {SANITIZED}" for cc in ("gcc", "clang")), *ELSEWHERE,
]  # fmt: skip


@pytest.mark.parametrize("build", BUILDS)
def test_every_compiler_makes_pythons_logits(build, exported, tmp_path):
    folder, pixels, printed = exported
    compile_with, *flags = build.split()
    run = [EMULATORS[key] for key in EMULATORS if compile_with.startswith(key)]
    program, trial = tmp_path / "program", tmp_path / "trial.c"
    trial.write_text('#include <stdio.h>\nint main(void) { return puts("") < 0; }\n')
    tools = shutil.which(compile_with) and all(map(shutil.which, run))
    command = [compile_with, *flags, "-o", program]
    if not tools or subprocess.run([*command, trial], capture_output=True).returncode:
        pytest.skip(f"{build} is not here: apt install {ELSEWHERE.get(build, compile_with)}")
    sources = [folder / f"{name}.c" for name in ("main", *NETWORKS)]
    told = subprocess.run([*command, *WARNINGS.split(), *sources], capture_output=True, text=True)
    assert told.returncode == 0 and not told.stderr, told.stderr
    ran = subprocess.run([*run, program], input=pixels, capture_output=True)
    assert ran.returncode == 0 and not ran.stderr, ran.stderr.decode()
    assert ran.stdout.decode().splitlines() == printed


@pytest.mark.parametrize(
    "make", [*NETWORKS.values(), lambda: shaken(binary_deep_convnet(scaled=True))]
)
def test_the_file_needs_nothing_and_its_constants_are_counted(make, tmp_path):
    file = export_c(fold(make()), tmp_path / "net.c")
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
@pytest.mark.parametrize("name", ["digits.c", "a b/ünd so.c", "-o.c"])
def test_names_that_a_shell_would_mind(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a b").mkdir()
    file = export_c(odd_binary_network(1), name)
    monkeypatch.chdir("/")
    assert compile_c(file).logits(file.checked[0]).shape == (32, file.classes)


@needs_a_compiler
def test_a_file_that_is_written_anew_is_compiled_anew(tmp_path):
    files = []
    for seed in (0, 1):
        network = shaken(binary_mlp(seed, hidden=20))
        x = byte_images(np.random.default_rng(1), 5, network.input_shape)
        files.append(export_c(network, tmp_path / "net.c"))
        compiled = compile_c(files[-1])
        assert np.array_equal(compiled.logits(as_bytes(x)), network.forward(x)), seed
    with pytest.raises(ValueError, match=r"net\.c is not what export_c wrote any more: export it"):
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


@needs_a_compiler
@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("exec $cc \"$@\"", "-O3 -march=native"),
        (f"case \"$*\" in *-fno-tree-loop*) exec $cc \"$@\";; *) {SPOILT} esac",
         "-O3 -march=native -fno-tree-loop-vectorize"),
        (f"case \"$*\" in *-O2*) exec $cc \"$@\";; *) {SPOILT} esac", "-O3 -march=native -O2"),
        ("case \"$*\" in *-march*) echo what is -march? >&2; exit 1;; *) exec $cc \"$@\";; esac",
         "-O3 -O2"),
    ],
)  # fmt: skip
def test_the_flags_are_those_with_which_the_answers_are_pythons(
    script, flags, tmp_path, monkeypatch
):
    other_compiler(tmp_path, monkeypatch, script)
    made = compile_c(export_c(sixty_three(), tmp_path / "net.c"))
    assert " ".join(made.flags).endswith(f"-pedantic {flags}")
    images, logits = made.file.checked
    assert np.array_equal(made.logits(images), logits)


@needs_a_compiler
@pytest.mark.parametrize(
    ("script", "message"),
    [
        (SPOILT, "32 of 32 images get other answers than in Python"),
        ("kill -SEGV $$", "mycc does not take net.c:\nit ended with -11 and said nothing"),
        ("exit 0", "mycc does not take net.c:\nit ended with 0"),
        ("echo no such flag >&2; exit 1", "mycc does not take net.c:\nno such flag"),
    ],
)
def test_a_compiler_that_does_not_serve(script, message, tmp_path, monkeypatch):
    other_compiler(tmp_path, monkeypatch, script)
    with pytest.raises(RuntimeError, match=rf"no C network from net\.c: {re.escape(message)}"):
        compile_c(export_c(odd_binary_network(1), tmp_path / "net.c"))


@pytest.mark.parametrize("script", [None, "kill -SEGV $$", "exit 1"])
def test_chapter_06_replays_its_recording_where_no_compiler_serves(
    script, tmp_path, monkeypatch, capsys
):
    if script:
        other_compiler(tmp_path, monkeypatch, script)
    else:
        monkeypatch.setattr(compiler, "c_compiler", lambda: None)
    notebook = json.loads((NOTEBOOKS / "06_binarized_networks.ipynb").read_text("utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"]]
    first = next(n for n, cell in enumerate(cells) if "import compile_c" in cell)
    files = {n: export_c(odd_binary_network(1), tmp_path / f"{n}.c") for n in ("2048", "512")}
    names = {"np": np, "files": files, "test_images": np.zeros(3), "data_folder": data_folder}
    for cell in cells[first : first + 4]:
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
    images, logits = (np.tile(array, (10, *[1] * (array.ndim - 1))) for array in
                      compiled.file.checked)  # fmt: skip
    found = [None] * 4

    def work(place):
        found[place] = compiled.logits(images)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(one, logits) for one in found)


@pytest.mark.parametrize("call", [CNetwork.logits, CNetwork.predict_classes])
@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        *((np.zeros((1, 1, 28, 28), dtype), TypeError, f"as uint8, 0 to 255, got {name}")
          for dtype, name in ((np.float32, "float32"), (np.int8, "int8"), (bool, "bool"),
                              (">u2", ">u2"))),
        *((np.zeros(shape, np.uint8), ValueError, r"takes images \(N, 1, 28, 28\), got")
          for shape in ((1, 1, 14, 14), (1, 3, 28, 28), (28, 28), (784,), (1, 784), (), (1, 28, 28),
                        (1, 1, 1, 28, 28), (28, 28, 1, 1))),
        (np.zeros((1, 28, 28), np.uint8), ValueError, r"For one image use x\[None\]"),
        ([[0] * 28] * 28, TypeError, "list"), (None, TypeError, "None"),
    ],
)  # fmt: skip
def test_other_images_are_refused(call, images, error, message, compiled):
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
