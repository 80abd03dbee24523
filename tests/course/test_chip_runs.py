"""The recording of the C files: what it holds, and what is said where something is missing."""

import re

import numpy as np
import pytest
from helpers import needs_a_compiler, shaken

from fastdl_lib.binary.export_c import CNetwork, export_c
from fastdl_lib.binary.inference import fold
from fastdl_lib.binary.networks import binary_mlp
from fastdl_lib.core.datasets import mnist
from fastdl_lib.course import chip, record
from fastdl_lib.measuring.evidence import Provenance
from fastdl_lib.measuring.recordings import read_recording
from fastdl_lib.nn.training import predict_classes

WHATS = ["constants", "buffers", "rest", "equal", "right", "speed"]


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Two small networks in the place of the shipped ones; returns the folder of their data."""
    assert {name: hidden for name, (_, hidden) in chip.CHIPS.items()} == {
        "digits2048": 2048,
        "digits512": 512,
    }, "chapter 06 asks for these names"
    (tmp_path / "weights").mkdir()
    (tmp_path / "recordings").mkdir()
    chips = {f"digits{hidden}": (f"mlp{hidden}.npz", hidden) for hidden in (32, 65)}
    for file, hidden in chips.values():
        shaken(binary_mlp(hidden=hidden)).save_weights(tmp_path / "weights" / file, packed=True)
    changed = {"CHIPS": chips, "BUDGET_S": 0.001, "CLOCKED": 20, "IMAGES": 50}
    for name, value in changed.items():
        monkeypatch.setattr(chip, name, value)
    for module in (chip, record):
        monkeypatch.setattr(module, "data_folder", lambda: tmp_path)
    return tmp_path


@needs_a_compiler
def test_the_command_writes_both_networks(small, tmp_path, capsys):
    assert record.main(["chip"]) == 0
    recording = read_recording(small / "recordings" / "chip.json")
    assert recording.command == "python -m fastdl_lib.course.record chip"
    out = capsys.readouterr().out
    assert f"{len(recording.measurements)} measurements written to chip.json" in out
    assert "digits65, equal: 50 answers" in out
    images, labels = (array[:50] for array in mnist("test"))
    assert np.array_equal(np.rint(255 * images).astype(np.uint8) / np.float32(255), images)
    for name, (file, hidden) in chip.CHIPS.items():
        found = {m.conditions["what"]: m for m in recording.select(network=name)}
        assert list(found) == WHATS
        network = binary_mlp(hidden=hidden).load_weights(small / "weights" / file)
        counted = export_c(fold(network), tmp_path / "other.c")
        right = 100 * (predict_classes(network, images) == labels).mean()
        assert found["constants"].samples == (counted.constants_bytes,)
        assert found["buffers"].samples == (counted.buffers_bytes,)
        assert found["equal"].samples == (50,) and found["equal"].conditions["images"] == 50
        assert found["right"].samples == (pytest.approx(right),)
        assert 0 < found["rest"].median < 64 * 1024
        speed = found["speed"]
        assert speed.unit == "images/s" and len(speed.samples) >= 3
        assert speed.conditions["threads"] == 1 and speed.conditions["images"] == 20
        assert all(m.provenance is Provenance.RECORDED for m in found.values())


@needs_a_compiler
def test_another_answer_is_refused_and_nothing_is_written(small, monkeypatch, capsys):
    answers = CNetwork.predict_classes

    def one_wrong(self, pixels):
        found = answers(self, pixels)
        found[3] = (found[3] + 1) % 10
        return found

    monkeypatch.setattr(CNetwork, "predict_classes", one_wrong)
    assert record.main(["chip"]) == 1
    assert "digits32: only 49 of 50 answers are Python's." in capsys.readouterr().err
    assert not list((small / "recordings").iterdir())


def no_compiler(small, monkeypatch):
    monkeypatch.setattr(chip, "c_compiler", lambda: None)


def no_weights(small, monkeypatch):
    monkeypatch.setattr(chip, "c_compiler", lambda: "cc")
    (small / "weights" / "mlp65.npz").unlink()


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (no_compiler, "there is no C compiler here: install one"),
        (no_weights, "data/weights/mlp65.npz is missing. Train it: .*--hidden 65 --packed"),
    ],
)
def test_what_is_missing_is_said_before_the_work(small, break_it, message, monkeypatch, capsys):
    monkeypatch.setattr(chip, "chip_run", None)
    break_it(small, monkeypatch)
    assert record.main(["chip"]) == 1
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert not list((small / "recordings").iterdir())
