"""What disturbs a measurement, with a busy machine made up and with a real one."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from fastdl_lib.core.threads import usable_cores
from fastdl_lib.figures.picture import origins_of
from fastdl_lib.measuring import disturbance
from fastdl_lib.measuring.disturbance import Watch
from fastdl_lib.measuring.evidence import Column, Measurement, Table
from fastdl_lib.measuring.timing import benchmark


@pytest.fixture
def machine(monkeypatch):
    """A machine on which every sample takes 10 ms, and what the test says runs beside."""

    class Machine:
        now = waited = ran = others = 0.0
        clock = 1.0
        waits = ()

        def sample(self):
            wait = self.waits[self.taken % len(self.waits)]
            self.taken, self.now = self.taken + 1, self.now + 0.01
            self.waited, self.ran = self.waited + wait * 0.01, self.ran + (1 - wait) * 0.01
            return self.taken

        def take(self, *waits, others=0.0, **how):
            self.waits, self.taken, began = waits, 0, self.now
            monkeypatch.setattr(disturbance, "others_s", lambda: others * (self.now - began))
            watch = Watch()
            watch.take(self.sample, **{"budget_s": 0.095, "least": 3} | how)
            return watch

    made = Machine()
    monkeypatch.setattr(disturbance.time, "perf_counter", lambda: made.now)
    monkeypatch.setattr(disturbance.time, "process_time", lambda: made.ran)
    monkeypatch.setattr(disturbance, "waited_s", lambda: made.waited)
    monkeypatch.setattr(disturbance, "clock_share", lambda: made.clock)
    return made


def test_a_quiet_machine_marks_nothing(machine):
    watch = machine.take(0.0)
    assert len(watch.samples) == 10 and watch.waited == [0] * 10 and not watch.disturbed


def test_who_waits_for_its_own_threads_is_not_disturbed(machine):
    watch = machine.take(0.5, others=0.0, most=4)
    assert watch.samples == [1, 2, 3, 4] and watch.waited == pytest.approx([0.5] * 4)
    assert not watch.disturbed


def test_disturbed_samples_are_taken_again_within_the_budget(machine):
    watch = machine.take(0.0, 0.4, others=1.0, most=4)
    assert watch.samples == [1, 3, 5, 7] and not watch.disturbed and watch.left_out == 3
    watch = machine.take(0.0, 0.4, others=1.0)
    assert watch.samples == [1, 3, 5, 7, 9] and watch.left_out == 5


def test_where_too_few_are_quiet_all_stay_and_say_so(machine):
    watch = machine.take(0.4, others=0.9, most=4)
    assert watch.samples == [1, 2, 3, 4]
    wanted = "got 60% of the processor time it asked for, while other programs used 0.9 cores"
    assert watch.disturbed == wanted
    machine.clock = 0.5
    assert machine.take(0.0).disturbed == "a core ran at 50% of its best speed afterwards"


def test_the_mark_is_seen_wherever_the_number_is(card):
    quiet = Measurement.measured("a product", "ms", 2.0, 3.0, machine=card)
    m = dataclasses.replace(quiet, waited=(0.4, 0.5), disturbed="got 60% of its time")
    for made in (m, m.convert(lambda ms: 1 / ms, "1/ms"), quiet.over(m), m.over(quiet)):
        assert "disturbed: got 60% of its time" in str(made) and "disturbed" in f"{made:.1f}"
    assert "disturbed" not in str(quiet.over(quiet))
    table = Table((Column("a"),), ({"a": quiet}, {"a": m}), "Times")
    assert str(table).splitlines()[1] == "Disturbed: got 60% of its time."
    assert "<br>Disturbed: got 60% of its time." in table._repr_html_()
    assert "DISTURBED: got 60% of its time" in " ".join(map(str, origins_of([quiet, m])))
    kept = json.loads(json.dumps(m.to_dict()))
    assert Measurement.from_dict(kept, card).disturbed == m.disturbed
    assert not {"disturbed", "left_out"} & quiet.to_dict().keys()
    assert Measurement.from_dict(quiet.to_dict(), card).waited == ()
    fewer = dataclasses.replace(quiet, left_out=3)
    assert "2 of 5 samples" in str(fewer)
    assert Measurement.from_dict(fewer.to_dict(), card).left_out == 3


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how long a thread waited")
def test_busy_loops_beside_are_noticed():
    loops = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"])
        for _ in range(usable_cores() + 1)
    ]
    try:
        a = np.ones((1500, 1500), np.float32)  # longer than a turn of the scheduler
        m = benchmark(lambda: a @ a, budget_s=0.3, min_repeats=5)
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
    assert "while other programs used" in m.disturbed and len(m.waited) == len(m.samples)
