"""What is given for weights or a checkpoint and is neither, or one that is not whole."""

import io
import json
import math
import os
import pickle
import zipfile

import numpy as np
import pytest
from helpers import OPTIMIZERS, STEPS, assert_same_weights, break_at, toy, train

from fastdl_lib.binary.inference import fold
from fastdl_lib.binary.networks import binary_mlp
from fastdl_lib.core.files import whole_file


def written(writer, *arguments, **named):
    """What a writer writes to a file."""
    content = io.BytesIO()
    writer(content, *arguments, **named)
    return content.getvalue()


class Trap:
    def __reduce__(self):
        return (os.mkdir, ("sprung",))


def pickled_inside():
    array = np.empty((), object)
    array[()] = Trap()
    return written(np.savez, record=array, **{"conv.weight": array})


def a_document(file):
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("word/document.xml", "<w/>")


def an_array_twice(file):
    np.savez(file, **{"conv.weight": np.zeros(2)})
    with zipfile.ZipFile(file, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("conv.weight.npy", written(np.save, np.ones(2)))


WHOLE = written(np.savez, **toy().parameters)
FILES = {
    "empty": (b"", "run.npz is no .npz file: it is empty."),
    "text": (b"no archive at all", "run.npz is no .npz file: it is text."),
    "bytes": (b"\xff\xd8\xff\xe0", "it is another kind of file, which begins with b'\\xff"),
    "a recording": (json.dumps({"schema": "fastdl-recording/2"}).encode(),
                    "it is JSON with the schema 'fastdl-recording/2', such as a recording."),
    "deep JSON": (b"[" * 100_000, "it is text."),
    "a pickle": (pickle.dumps({"conv.weight": 1}), "it is a Python pickle, which is never opened."),
    "one array": (written(np.save, np.zeros(3)), "it is a single array (.npy)."),
    "gzip": (b"\x1f\x8b\x08\x00", "it is compressed by gzip."),
    "a pickle inside": (pickled_inside(), "cannot be read to its end (Object arrays cannot be"),
    "a document": (written(a_document), "is an archive, but no .npz file: it holds word/document"),
    "an array twice": (written(an_array_twice), "to its end (it holds two arrays of one"),
    "no arrays": (written(np.savez), "holds the arrays []"),
    "other arrays": (written(np.savez, a=np.ones(2), record=np.ones(2)),
                     "holds the arrays ['a', 'record']"),
    **{f"cut off, {keep}": (WHOLE[:keep], "it is damaged, cut off, or holds something else")
       for keep in (4, 1000, -1, -100)},
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_another_file_says_what_it_is_and_stays(kind, tmp_path, monkeypatch):
    content, words = FILES[kind]
    monkeypatch.chdir(tmp_path)
    path, network = tmp_path / "run.npz", toy()
    path.write_bytes(content)
    for use in (network.load_weights, lambda path: train(network, checkpoint=path)):
        with pytest.raises(ValueError, match=r"run\.npz ") as caught:
            use(path)
        message = str(caught.value)
        assert words in message and "delete" not in message and "remove" not in message
    assert "give this run's checkpoint another name" in message
    assert_same_weights(network, toy())
    assert path.read_bytes() == content and os.listdir(tmp_path) == ["run.npz"]


def test_good_weights_are_no_checkpoint(tmp_path):
    path = tmp_path / "net.npz"
    toy(seed=1).save_weights(path)
    before = path.read_bytes()
    words = (
        "net.npz is no checkpoint but holds the weights of a network: give this run's checkpoint "
        "another name."
    )
    with pytest.raises(ValueError, match=words):
        train(checkpoint=path)
    assert path.read_bytes() == before
    with pytest.raises(IsADirectoryError, match="is a folder, expected an "):
        toy().load_weights(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no file gone\.npz"):
        toy().load_weights(tmp_path / "gone.npz")


# --- arrays and numbers that cannot be ----------------------------------------------------------


def mlp(seed=0):
    return binary_mlp(seed=seed, hidden=16)


WEIGHTS = {
    "floats": (mlp, False),
    "bits": (mlp, True),
    "folded": (lambda seed=0: fold(mlp(seed)), False),
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """What files hold: of weights, and of runs whose second epoch was broken off."""
    files, path = {}, tmp_path_factory.mktemp("files") / "run.npz"
    for kind, (make, packed) in WEIGHTS.items():
        make(seed=1).save_weights(path, packed=packed)
        files[kind] = dict(np.load(path))
        path.unlink()
    for kind in OPTIMIZERS:
        break_at(network := toy(), STEPS + 1, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            train(network, OPTIMIZERS[kind](), checkpoint=path)
        files[kind] = dict(np.load(path))
        path.unlink()
    return files


def refuses(path, kind, arrays, message):
    """A weights file, or a checkpoint, of such arrays changes nothing and is refused."""
    with whole_file(path) as part:
        np.savez(part, **arrays)
    if kind in WEIGHTS:
        make, _ = WEIGHTS[kind]
        network, optimizer = make(), None
        with pytest.raises(ValueError, match=message):
            network.load_weights(path)
    else:
        make, network, optimizer = toy, toy(), OPTIMIZERS[kind]()
        with pytest.raises(ValueError, match=message):
            train(network, optimizer, checkpoint=path)
    assert_same_weights(network, before := make())
    assert all((array == before.buffers[name]).all() for name, array in network.buffers.items())
    assert optimizer is None or not (optimizer.state or optimizer.steps)


@pytest.mark.parametrize("kind", ["floats", "folded", *OPTIMIZERS])
def test_every_array_is_looked_at(stored, kind, tmp_path):
    for name, array in stored[kind].items():
        if name == "record":
            continue
        damaged = {
            "is missing, expected": None,
            "is complex": array.astype(complex),
            "is <U": array.astype(str),
            r"is .*, 1\), expected": array[..., None],
        }
        if array.dtype.kind == "f":
            damaged |= {
                "holds numbers that are not fin": array * np.nan,
                "holds numbers that are not": np.full_like(array, np.inf),
                "": np.full(array.shape, 1e300),  # another dtype, or too much for float32
                "is int64": array.astype(np.int64),
            }
        for words, bad in damaged.items():
            arrays = {n: a for n, a in stored[kind].items() if n != name or bad is not None}
            arrays |= {} if bad is None else {name: bad}
            refuses(tmp_path / "run.npz", kind, arrays, f"{name} {words}")
    more = stored[kind] | {"fc3.own": np.ones(2)}
    refuses(tmp_path / "run.npz", kind, more, r"fc3\.own is float64 \(2,\), expected no such array")


def changed(key, change):
    return lambda arrays: arrays.update({key: change(arrays[key])})


def recorded(**changes):
    """Other fields of the record, or of its first epoch where there are such."""

    def change(arrays):
        record = json.loads(str(arrays["record"]))
        first = record["epochs"][0]
        for name, value in changes.items():
            (first if name in first else record)[name] = value
        record = {name: value for name, value in record.items() if value != "gone"}
        arrays["record"] = np.array(json.dumps(record))

    return change


def without_memory(*kinds):
    def change(arrays):
        for name in [name for name in arrays if name.startswith(kinds)]:
            del arrays[name]

    return change


EPOCH = {
    "epoch": 1, "loss": 1.0, "accuracy": 0.5, "validation_accuracy": None, "learning_rate": 0.1,
    "seconds": 1.0,
}  # fmt: skip
FILLING = np.uint64(2**63)  # no weight's: rows are 784 and 16 long
NOT_WHOLE = "expected a whole one of 'fastdl-checkpoint/1'"
BROKEN = [
    ("floats", changed("norm1.variance", lambda a: -a), r"norm1\.variance holds -1, expected no"),
    ("folded", changed("fc1.threshold", lambda a: a.astype(int) + 2**33), "fc1: threshold is"),
    ("folded", changed("fc2.threshold", lambda a: a * 0 + 17), "fc2: threshold is beyond 16, t"),
    ("folded", changed("fc2.threshold", lambda a: a * 0 - 17), "fc2: threshold is beyond 16"),
    ("folded", changed("fc1.words", lambda a: a | FILLING), "fc1: words has bits where"),
    ("folded", changed("fc4.words", lambda a: a | FILLING), "fc4: words has bits where"),
    ("folded", changed("fc2.falling", lambda a: a | FILLING), "fc2: falling has bits where there"),
    ("bits", changed("fc1.weight.bits", lambda a: a | FILLING), "fc1: bits stand where ther"),
    ("bits", changed("fc1.weight.bits", lambda a: a[:, :-1]), "784 takes 13 words a row, got the"),
    ("bits", changed("fc1.weight.bits", lambda a: a[:-1]), r"is float32 \(15, 784\), ex"),
    ("bits", changed("fc1.weight.bits", lambda a: a.astype(np.int64)), "words must be uint64"),
    ("bits", lambda arrays: arrays.update({"fc1.weight.scale": -np.ones((16, 1))}),
     r"fc1\.weight\.scale is float64 .* expected no such array"),
    ("bits", lambda arrays: arrays.update({"fc1.weight": np.ones((16, 784), np.float32)}),
     r"fc1\.weight\.bits is uint64 \(16, 13\)"),
    ("Adam", changed("state.square.fc.bias", lambda a: a - 1), r"fc\.bias holds -.*below 0"),
    ("Adam", without_memory("state"), r"state\.mean\.conv\.bias is missing, expected float32"),
    ("Adam", without_memory("state.square"), r"state\.square\.conv\.bias is missing"),
    ("SGD", without_memory("state"), r"state\.velocity\.conv\.bias is missing"),
    ("SGD", changed("weight.fc.bias", lambda a: a.astype(float)), r"is float64 \(3,\), expected"),
    ("SGD", changed("record", lambda a: np.array("{")), "schema None, expected a whole one"),
    ("SGD", changed("record", lambda a: np.array("[" * 100_000)), "schema None, expected a whole"),
    ("SGD", recorded(schema="fastdl-checkpoint/0"), "schema 'fastdl-checkpoint/0', expected"),
    ("SGD", recorded(start="gone"), NOT_WHOLE),
    ("SGD", recorded(settings={"network": "toy", "layers": [1]}), r"its layers is \[1\], t"),
    ("SGD", recorded(steps="5"), NOT_WHOLE),
    ("SGD", recorded(steps=10**400), "too large to convert"),
    ("SGD", recorded(steps=-5), "steps must be at least 5, got -5"),
    ("SGD", recorded(steps=4), "steps must be at least 5, got 4"),
    ("Adam", recorded(steps=0), "is float32 .*, expected no such array"),
    ("SGD", recorded(steps=True), "steps must be a whole number, got True"),
    ("SGD", recorded(numbers={"scale": 2.0}), r"its numbers are {'scale': 2\.0}, th"),
    ("SGD", recorded(numbers=[1]), "'list' object has no"),
    ("SGD", recorded(epochs=[{"epoch": 1}]), "missing 5 required"),
    ("SGD", recorded(epochs=[1]), "must be a mapping"),
    ("SGD", recorded(epochs=[EPOCH | {"epoch": k} for k in range(1, 6)]), r"4, 5\], of 4"),
    ("SGD", recorded(epochs=[EPOCH, EPOCH]), r"its epochs are \[1, 1\], of 4"),
    ("SGD", recorded(epoch=1.0), "epoch must be a whole number, got 1.0"),
    ("SGD", recorded(loss="0.5"), "loss must be a number, got '0.5'"),
    ("SGD", recorded(loss=-0.5), "loss must be at least 0 and finite, got -0.5"),
    ("SGD", recorded(loss=math.nan), "loss must be at least 0 and finite, got nan"),
    ("SGD", recorded(loss=10**400), "too large to convert"),
    ("SGD", recorded(accuracy=1.5), "accuracy must be at most 1, got 1.5"),
    ("SGD", recorded(validation_accuracy=0.5), "have a validation accuracy, or none, unlike the"),
    ("SGD", recorded(learning_rate=None), "learning_rate must be a number, got None"),
    ("SGD", recorded(seconds=-1.0), "seconds must be at least 0"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "change", "message"), BROKEN)
def test_what_cannot_be_in_a_file_is_refused_and_changes_nothing(
    stored, kind, change, message, tmp_path
):
    arrays = dict(stored[kind])
    change(arrays)
    refuses(tmp_path / "run.npz", kind, arrays, message)


def test_whole_numbers_in_a_wider_dtype_are_taken(stored, tmp_path):
    arrays = dict(stored["folded"])
    kept = arrays["fc1.threshold"]
    np.savez(tmp_path / "w.npz", **arrays | {"fc1.threshold": kept.astype(np.int64)})
    got = fold(mlp()).load_weights(tmp_path / "w.npz").buffers["fc1.threshold"]
    assert (got == kept).all() and got.dtype == np.int32
