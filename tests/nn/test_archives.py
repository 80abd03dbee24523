"""What is given for weights or a checkpoint and is neither, or one that is not whole."""

import io
import json
import os
import pickle
import zipfile

import numpy as np
import pytest
from helpers import OPTIMIZERS, STEPS, assert_same_weights, break_at, toy, train

from fastdl_lib.core.files import whole_file
from fastdl_lib.nn.optimizers import SGD


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


# --- a checkpoint that is not whole -------------------------------------------------------------


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The arrays and the record of a run whose second epoch was broken off."""
    path, network = tmp_path_factory.mktemp("run") / "run.npz", toy()
    break_at(network, STEPS + 1, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        train(network, OPTIMIZERS["SGD"](), checkpoint=path)
    with np.load(path) as archive:
        return dict(archive)


def recorded(**changes):
    def change(arrays):
        record = json.loads(str(arrays["record"]))
        record |= changes
        arrays["record"] = np.array(json.dumps({k: v for k, v in record.items() if v != "gone"}))

    return change


def changed(key, change):
    return lambda arrays: arrays.update({key: change(arrays[key])})


LAST = "state.velocity.fc.bias"
BROKEN = [
    (lambda arrays: arrays.pop("weight.fc.bias"), r"weight\.fc\.bias is missing, expected float32"),
    (
        lambda arrays: arrays.pop(LAST),
        r"state\.velocity\.fc\.bias is missing, expected float32 \(3",
    ),
    (lambda arrays: arrays.update(own=np.ones(2)), r"own is float64 \(2,\), expected nothing"),
    (changed("weight.fc.bias", lambda a: a.astype(float)), r"is float64 \(3,\), expected float32"),
    (changed("weight.fc.bias", lambda a: a[:2]), r"is float32 \(2,\), expected float32 \(3,\)"),
    (
        changed("weight.fc.bias", lambda a: a * np.nan),
        r"fc\.bias holds numbers that are not finite",
    ),
    (changed(LAST, lambda a: a.astype(np.float16)), r"is float16 \(3,\), expected float32 \(3,\)"),
    (changed(LAST, lambda a: a[None]), r"is float32 \(1, 3\), expected"),
    (changed(LAST, lambda a: a + np.inf), r"velocity\.fc\.bias holds numbers that are not finite"),
    (changed(LAST, lambda a: np.array(["a", "b", "c"])), r"is <U1 \(3,\), expected float32"),
    (changed("record", lambda a: np.array("{")), r"schema None, expected a whole one"),
    (changed("record", lambda a: np.array("[" * 100_000)), r"schema None, expected a whole one"),
    (recorded(schema="fastdl-checkpoint/0"), "schema 'fastdl-checkpoint/0', expected a whole one"),
    (recorded(start="gone"), "expected a whole one of 'fastdl-checkpoint/1'"),
    (recorded(settings={"network": "toy", "layers": [1]}), r"its layers is \[1\], t"),
    (recorded(steps="5"), "expected a whole one of 'fastdl-checkpoint/1'"),
    (recorded(numbers={"scale": 2.0}), r"its numbers are {'scale': 2\.0} after 5 steps"),
    (recorded(numbers=[1]), "its record is none"),
    (recorded(steps=10**400), "its record is none"),
    (recorded(steps=-5), "after -5 steps"),
    (recorded(epochs=[{"epoch": 1}]), "its record is none"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN)
def test_a_checkpoint_that_is_not_whole_is_refused_and_changes_nothing(
    stored, change, message, tmp_path
):
    path, arrays = tmp_path / "run.npz", dict(stored)
    change(arrays)
    with whole_file(path) as part:
        np.savez(part, **arrays)
    network, optimizer = toy(), SGD(0.02, momentum=0.9, weight_decay=1e-3)
    with pytest.raises(ValueError, match=message):
        train(network, optimizer, checkpoint=path)
    assert_same_weights(network, toy())
    assert not optimizer.state and not optimizer.steps
