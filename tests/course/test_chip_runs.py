"""The recording of the C files: what it holds, and what is said where something is missing."""

import numpy as np
import pytest
from helpers import needs_a_compiler, shaken

from fastdl_lib.binary.export_c import CNetwork, export_c
from fastdl_lib.binary.inference import fold
from fastdl_lib.binary.networks import binary_mlp
from fastdl_lib.core.datasets import mnist
from fastdl_lib.course import chip as chip_runs
from fastdl_lib.course.chip import chip_run, main
from fastdl_lib.measuring.evidence import Provenance
from fastdl_lib.measuring.recordings import read_recording
from fastdl_lib.nn.training import predict_classes

WHATS = ["constants", "buffers", "rest", "equal", "right", "speed"]


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Two small networks in the place of the shipped ones; returns the folder of their data."""
    (tmp_path / "weights").mkdir()
    (tmp_path / "recordings").mkdir()
    chips = {f"digits{hidden}": (f"mlp{hidden}.npz", hidden) for hidden in (32, 65)}
    for file, hidden in chips.values():
        shaken(binary_mlp(hidden=hidden)).save_weights(tmp_path / "weights" / file, packed=True)
    monkeypatch.setattr(chip_runs, "CHIPS", chips)
    monkeypatch.setattr(chip_runs, "data_folder", lambda: tmp_path)
    monkeypatch.setattr(chip_runs, "_BUDGET_S", 0.001)
    monkeypatch.setattr(chip_runs, "_CLOCKED", 20)
    return tmp_path


def test_the_names_are_those_that_chapter_06_asks_for():
    assert {name: hidden for name, (_, hidden) in chip_runs.CHIPS.items()} == {
        "digits2048": 2048,
        "digits512": 512,
    }


@needs_a_compiler
def test_the_command_writes_both_networks(small, tmp_path, capsys):
    assert main(["--images", "50"]) == 0
    recording = read_recording(small / "recordings" / "chip.json")
    assert recording.command == "python -m fastdl_lib.course.chip --images 50"
    out = capsys.readouterr().out
    assert f"{len(recording.measurements)} measurements written to chip.json" in out
    assert "digits65, equal: 50 answers" in out
    images, labels = (array[:50] for array in mnist("test"))
    for name, (file, hidden) in chip_runs.CHIPS.items():
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
        assert found["speed"].unit == "images/s" and len(found["speed"].samples) >= 3
        assert found["speed"].conditions["threads"] == 1
        assert found["speed"].conditions["images"] == 20
        assert all(m.provenance is Provenance.RECORDED for m in found.values())


@needs_a_compiler
def test_another_answer_is_refused_and_nothing_is_written(small, monkeypatch, capsys):
    answers = CNetwork.predict_classes

    def one_wrong(self, pixels):
        found = answers(self, pixels)
        found[3] = (found[3] + 1) % 10
        return found

    monkeypatch.setattr(CNetwork, "predict_classes", one_wrong)
    images, labels = (array[:30] for array in mnist("test"))
    with pytest.raises(RuntimeError, match="digits: only 29 of 30 answers"):
        chip_run("digits", binary_mlp(hidden=32), images, labels)
    assert main(["--images", "30"]) == 1
    assert "digits32: only 29 of 30 answers are Python's." in capsys.readouterr().err
    assert not list((small / "recordings").iterdir())


def test_without_a_compiler_it_says_so(small, monkeypatch, capsys):
    monkeypatch.setattr(chip_runs, "c_compiler", lambda: None)
    assert main([]) == 1
    assert "there is no C compiler here: install one" in capsys.readouterr().err
    assert not list((small / "recordings").iterdir())


def test_without_weights_it_says_how_to_make_them(small, monkeypatch, capsys):
    monkeypatch.setattr(chip_runs, "c_compiler", lambda: "cc")
    (small / "weights" / "mlp65.npz").unlink()
    assert main([]) == 1
    error = capsys.readouterr().err
    assert "data/weights/mlp65.npz is missing" in error and "--hidden 65 --packed" in error
    assert not list((small / "recordings").iterdir())


@needs_a_compiler
def test_a_place_that_cannot_be_is_said(small, capsys):
    assert main(["--images", "20", "--out", str(small / "gone" / "chip.json")]) == 1
    assert capsys.readouterr().err


@pytest.mark.parametrize("images", ["0", "10001"])
def test_too_many_images_are_refused(small, images, capsys):
    with pytest.raises(SystemExit):
        main(["--images", images])
    assert "--images is from 1 to 10,000" in capsys.readouterr().err


def test_pixels_are_the_bytes_of_the_images():
    images = mnist("test")[0][:100]
    assert np.array_equal(np.rint(255 * images).astype(np.uint8) / np.float32(255), images)
