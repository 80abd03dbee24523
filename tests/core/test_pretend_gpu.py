"""The stand-in for CuPy: as strict as it, and gone without a trace after its block."""

import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest

from fastdl_lib.core import compiler, pretend_gpu
from fastdl_lib.core.arrays import array_module, gpu_available, gpu_kernel, gpu_status, to_gpu


@pytest.mark.parametrize(
    "mistake",
    [
        lambda gpu, cpu: np.asarray(gpu),
        lambda gpu, cpu: np.exp(gpu),
        lambda gpu, cpu: np.sum(gpu),
        lambda gpu, cpu: gpu + cpu,
        lambda gpu, cpu: cpu + gpu,
        lambda gpu, cpu: gpu @ cpu,
        lambda gpu, cpu: cpu @ gpu,
        lambda gpu, cpu: gpu == cpu,
        lambda gpu, cpu: gpu[cpu > 0],
        lambda gpu, cpu: gpu.__iadd__(cpu),
        lambda gpu, cpu: cpu.__iadd__(gpu),
        lambda gpu, cpu: gpu.__setitem__(slice(None), cpu),
        lambda gpu, cpu: cpu.__setitem__(slice(None), gpu),
        lambda gpu, cpu: sys.modules["cupy"].maximum(gpu, cpu),
        lambda gpu, cpu: plt.Figure().subplots().plot(gpu),
    ],
)
def test_stand_in_refuses_numpy(fake_gpu, mistake):
    with pytest.raises(TypeError, match=r"Unsupported type|Implicit conversion"):
        mistake(fake_gpu.ones(3), np.ones(3))


def test_the_pretend_gpu_leaves_everything_as_it_was():
    before, status = sys.modules.get("cupy"), gpu_status()
    with pytest.raises(KeyError), pretend_gpu.pretend_gpu() as outer:
        assert gpu_available() and sys.modules["cupy"] is outer
        x = to_gpu(np.ones(3))
        with pretend_gpu.pretend_gpu() as inner:
            to_gpu(np.ones(3)).get()
            assert inner.counts["to_cpu"] == 1
        assert outer.counts == {"to_gpu": 1, "to_cpu": 0, "numbers": 0, "synchronize": 0}
        raise KeyError
    assert sys.modules.get("cupy") is before
    assert gpu_status() == status
    if before is None:
        with pytest.raises(TypeError, match=r"out of its block.*with pretend_gpu\(\)"):
            array_module(x)


def test_the_stand_in_counts_what_is_fetched(fake_gpu):
    x = to_gpu(np.arange(3.0))
    fake_gpu.counts.update(dict.fromkeys(fake_gpu.counts, 0))
    fetched = float(x[1]), int(x[2]), bool(x[0]), x[0].item(), x.tolist()
    assert fetched == (1.0, 2, False, 0.0, [0.0, 1.0, 2.0])
    assert fake_gpu.counts["numbers"] == 5
    assert str(x) == "[0. 1. 2.]" and fake_gpu.counts["to_cpu"] == 1


def test_numbers_of_numpy_mix_and_arrays_stay_what_they_are(fake_gpu):
    x = to_gpu(np.ones(3, np.float32))
    assert type(np.float32(2) * x) is type(x * np.float32(2)) is fake_gpu.ndarray
    kept = x
    x += 1
    assert x is kept and fake_gpu.add(x, 1, out=x) is x
    assert [type(part) for part in x] == 3 * [fake_gpu.ndarray]
    assert fake_gpu.concatenate([x, x]).shape == (6,)


def test_a_kernel_refuses_what_cupy_refuses(fake_gpu):
    kernel = fake_gpu.ElementwiseKernel("raw T x, int32 k", "T y", "y = k * x[i]", "scaled")
    x = to_gpu(np.arange(6, dtype=np.float32).reshape(2, 3))
    assert kernel(x, 3, fake_gpu.empty_like(x)).tolist() == [[0, 3, 6], [9, 12, 15]]
    for given, words in (
        ((x,), "Wrong number of arguments for 'scaled'"),
        ((x, 3, x, x), "Wrong number of arguments for 'scaled'"),
        ((x, fake_gpu.empty_like(x)), r"Type is mismatched\. k: "),
        ((x, 3, fake_gpu.empty((2, 3), np.float64)), "Type is mismatched"),
        ((np.ones((2, 3), np.float32), 3), "Unsupported type <class 'numpy.ndarray'>"),
        ((np.ones((2, 3), np.float32), 3, x), "Unsupported type"),
        ((x.T, 3, x), "contiguous"),
    ):
        with pytest.raises(TypeError, match=words):
            kernel(*given)
    with pytest.raises(ValueError, match="Loop size is undecided"):
        kernel(x, 3)


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int64", "float16", "float64"])
def test_a_kernel_takes_any_common_dtype(fake_gpu, dtype):
    x = to_gpu(np.arange(6).astype(dtype))
    code = ("raw T x, float32 half", "T y", "y = (T) (x[i] * half) + x[5]", "any_dtype")
    y = fake_gpu.ElementwiseKernel(*code)(x, 0.5, fake_gpu.empty_like(x))
    assert y.dtype == dtype and y.tolist() == ((np.arange(6) * 0.5).astype(dtype) + 5).tolist()


def test_a_kernel_sees_an_entry_of_what_is_not_raw_and_makes_its_output(fake_gpu):
    """Chapter 03's kernel, and CUDA's max and min: where one is no number they give the other."""
    square = fake_gpu.ElementwiseKernel("float32 x", "float32 y", "y = x * x + 1.0f", "squares")
    x = to_gpu(np.arange(6, dtype=np.float32).reshape(2, 3))
    assert square(x.T).tolist() == (x.get().T ** 2 + 1).tolist()
    clip = fake_gpu.ElementwiseKernel("T a, T low", "T b", "b = min(max(a, low), (T) 4)", "clip")
    low = to_gpu(np.array([[2], [np.nan]], np.float32))
    for out in ((), (x,)):
        assert clip(x, low, *out).tolist() == [[2, 2, 2], [3, 4, 4]]
    assert clip(x, 4, x).tolist() == [[4, 4, 4]] * 2
    whole = fake_gpu.ElementwiseKernel("T a, int8 b", "T c", "c = max(a, (T) b) - min(a, 1)", "w")
    assert whole(to_gpu(np.array([-3, 5])), -2).tolist() == [1, 4]


def test_a_kernel_needs_a_compiler_and_c(fake_gpu, monkeypatch):
    for code, words in (
        ("y = this is no C", r"does not take own\.c:"),
        ("y = x; x = 0", r"does not take own\.c:"),  # an input is constant, as with CuPy
        ("y = fastdl_nowhere(x)", r"own\.c calls .* fastdl_nowhere|does not take own\.c"),
    ):
        with pytest.raises(RuntimeError, match=words):
            fake_gpu.ElementwiseKernel("T x", "T y", code, "own")(fake_gpu.ones(3))
    monkeypatch.setattr(compiler, "c_compiler", lambda: None)
    with pytest.raises(RuntimeError, match="there is no C compiler here: install one"):
        fake_gpu.ElementwiseKernel("T x", "T y", "y = x - 1", "own")(fake_gpu.ones(3))


@pytest.mark.parametrize("inputs", ["int x", "bool x", "Tx", "", "raw T", "float x", "raw raw T x"])
def test_a_parameter_has_a_type_of_the_same_width_everywhere(fake_gpu, inputs):
    """NumPy's int has 64 bits, C's 32."""
    with pytest.raises(TypeError, match=r"'own': a parameter is written as .*, got .* float16"):
        fake_gpu.ElementwiseKernel(inputs, "T y", "y = 0", "own")
    with pytest.raises(TypeError, match="a parameter is written as"):
        fake_gpu.ElementwiseKernel("T x", inputs, "y = 0", "own")


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float64"])
@pytest.mark.parametrize(
    "code",
    ["y = x[i + 1]", "y = x[i - 1]", "y = x[i + 100000]", "y = i ? x[i] : x[-7000]", "y += x[i]",
     "if (i < 2) y = x[i]", "y = x[i]; (&y)[1] = 0", "y = x[i]; (&y)[i - 9] = x[i]"],
)  # fmt: skip
def test_a_kernel_keeps_to_what_is_its_own(fake_gpu, dtype, code):
    kernel = fake_gpu.ElementwiseKernel("raw T x", "T y", code, "astray")
    x = fake_gpu.ones(6, dtype)
    with pytest.raises(IndexError, match=r"'astray' (depends on what is not its|writes beyond)"):
        kernel(x, fake_gpu.empty_like(x))


def test_a_kernel_needs_a_gpu():
    if not gpu_available():
        with pytest.raises(RuntimeError, match=r"gpu_kernel\(\) needs a GPU\. CuPy"):
            gpu_kernel("own", "T x", "T y", "y = x")


def test_the_gpu_modules_need_neither_cupy_nor_torch():
    code = (
        "import sys; sys.modules['cupy'] = sys.modules['torch'] = None\n"
        "import fastdl_lib.convolution.gpu, fastdl_lib.nn.layers, fastdl_lib.core.pretend_gpu\n"
        "print(fastdl_lib.convolution.gpu.cudnn_status().available)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert told.stdout == "False\n", told.stderr
