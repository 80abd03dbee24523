"""The machine card: what a measurement ran on."""

import dataclasses
import datetime
import functools
import html
import math
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from fastdl_lib.core.arrays import gpu_status
from fastdl_lib.core.files import check_fields
from fastdl_lib.core.threads import (
    blas_libraries,
    blas_threads_now,
    container_limit,
    cpu_quota,
    threads_in_words,
    usable_cores,
)

FMA_UNITS = 2
"""The most units for fused multiplications and additions of whole vectors that a core has; no
system says how many."""
# float32 lanes of the widest vectors, by a flag in /proc/cpuinfo; ARM's wider ones tell no width.
_LANES = {"avx512f": 16, "fma": 8}


@dataclasses.dataclass(frozen=True, repr=False)
class MachineCard:
    """What decides a measured time, and nothing that names a person or a computer."""

    cpu: str
    cores: int
    """Cores this process may use (affinity and container limits counted in)."""
    memory_gib: float
    """Memory this process may use, GiB."""
    blas: str
    """Library, version and the kernel set it picked for this CPU."""
    blas_threads: int
    """0 where the BLAS does not tell, as Apple's Accelerate."""
    gpu: str
    system: str
    python: str
    versions: dict[str, str]
    date: str
    """Local date, YYYY-MM-DD."""
    lanes: int = 0
    """float32 numbers in a vector register, by the CPU's flags; 0 where the system tells none."""
    highest_ghz: float = 0.0
    """The highest clock that the system allows; 0 where it tells none, as in many virtual machines.
    A core's own clock can be measured: :func:`fastdl_lib.measuring.timing.clock_ghz`."""
    quota_cores: float = 0.0
    """What a container's CPU quota leaves, such as 1.5 cores; 0 where none binds. Until it is used
    up all threads run: a short sample may be faster than :attr:`cores` can compute."""

    def peak_gflops(self, dtype: str = "float32", ghz: float = 0.0) -> float:
        """The theoretical peak of the usable cores: cores x lanes x FMA units x 2 x clock, GFLOP/s.

        ``ghz`` is the clock where the card has none. 0 where a part is unknown.

        >>> dataclasses.replace(machine_card(), cores=2, lanes=8, highest_ghz=3.0).peak_gflops()
        192.0
        """
        lanes = self.lanes * 4 / np.dtype(dtype).itemsize
        return self.cores * lanes * FMA_UNITS * 2 * (self.highest_ghz or ghz)

    @property
    def has_gpu(self) -> bool:
        """Whether the card names a GPU, not why there is none."""
        return not self.gpu.startswith("none")

    def is_of(self, other: "MachineCard") -> bool:
        """Whether both are cards of the same kind of machine, whatever runs on it."""
        return (self.cpu, self.cores, self.gpu) == (other.cpu, other.cores, other.gpu)

    @property
    def summary(self) -> str:
        """One line for captions: CPU, cores, BLAS and its threads, GPU if any, NumPy, date."""
        gpu = f", {self.gpu}" if self.has_gpu else ""
        threads = threads_in_words(self.blas_threads)
        return (
            f"{self.cpu}, {self._cores}{self._quota}, {self.blas} on {threads}"
            f"{gpu}, NumPy {self.versions.get('numpy', '?')}, {self.date}"
        )

    @property
    def _cores(self) -> str:
        return "1 core" if self.cores == 1 else f"{self.cores} cores"

    @property
    def _quota(self) -> str:
        return f" (a quota of {self.quota_cores:g})" if self.quota_cores else ""

    def _rows(self) -> list[tuple[str, str]]:
        return [
            ("CPU", self.cpu),
            ("Cores usable", f"{self.cores}{self._quota}"),
            ("Peak, float32", self._peak_in_words()),
            ("Memory usable", f"{self.memory_gib:.1f} GiB"),
            ("BLAS", f"{self.blas}, {threads_in_words(self.blas_threads)}"),
            ("GPU", self.gpu),
            ("System", self.system),
            ("Python", self.python),
            ("Libraries", ", ".join(f"{name} {v}" for name, v in self.versions.items())),
            ("Date", self.date),
        ]

    def _peak_in_words(self) -> str:
        lanes = f"{self.lanes} lanes" if self.lanes else "unknown lanes"
        ghz = f"{self.highest_ghz:.2f} GHz" if self.highest_ghz else "unknown GHz"
        parts = f"{self._cores} x {lanes} x at most {FMA_UNITS} FMA units x 2 x {ghz}"
        return f"{self.peak_gflops():,.0f} GFLOP/s = {parts}" if self.peak_gflops() else parts

    def __str__(self) -> str:
        return "\n".join(f"{heading:14} {value}" for heading, value in self._rows())

    __repr__ = __str__  # what a notebook shows where it cannot show HTML

    def _repr_html_(self) -> str:
        left = " style='text-align:left'"
        body = "".join(
            f"<tr><th{left}>{heading}</th><td{left}>{html.escape(value)}</td></tr>"
            for heading, value in self._rows()
        )
        title = f"<caption{left}><b>Machine card</b> (measured here)</caption>"
        return f"<table>{title}<tbody>{body}</tbody></table>"

    def to_dict(self) -> dict:
        """A plain dictionary for JSON; :meth:`from_dict` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict) -> "MachineCard":
        """Build a card from :meth:`to_dict`'s output, or raise ValueError."""
        kinds = {field.name: field.type for field in dataclasses.fields(cls)}
        expected = {name: (int, float) if kind is float else kind for name, kind in kinds.items()}
        if isinstance(fields, dict):  # older cards lack what has a default
            fields = {"lanes": 0, "highest_ghz": 0.0, "quota_cores": 0.0} | fields
        check_fields(fields, {**expected, "versions": dict}, "a machine card")
        for name, value in fields.items():
            least = {"cores": 1, "memory_gib": 0.01}.get(name, 0)
            if value == "":
                raise ValueError(f"a machine card: {name} is empty.")
            if kinds[name] in (int, float) and not least <= value < math.inf:
                raise ValueError(f"a machine card: {name} is {value}, {least} is the least.")
        for text in fields["versions"].values():
            if not isinstance(text, str):
                raise ValueError(f"a machine card: versions hold {text!r}, which is no text.")
        return cls(**fields)


def _told(names: str) -> str:
    """What Linux says of the first CPU behind one of these names; empty where it does not."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    match = re.search(rf"^(?:{names})\s*:\s*(.+)$", text, re.MULTILINE)
    return match.group(1) if match else ""


def _peak_parts() -> tuple[int, float]:
    """Lanes and highest clock in GHz, as Linux tells them; 0 for what is unknown."""
    if not sys.platform.startswith("linux"):
        return 0, 0.0
    flags = _told("flags").split()
    clocks = Path("/sys/devices/system/cpu").glob("cpu*/cpufreq/cpuinfo_max_freq")
    khz = max((int(path.read_text()) for path in clocks), default=0)
    return next((lanes for flag, lanes in _LANES.items() if flag in flags), 0), khz / 1e6


def _cpu_model() -> str:
    """The CPU's marketing name; each system keeps it elsewhere."""
    name = ""
    if sys.platform.startswith("linux"):
        name = _told("model name|Model|Hardware")
    elif sys.platform == "darwin":
        query = ["sysctl", "-n", "machdep.cpu.brand_string"]
        name = subprocess.run(query, capture_output=True, text=True, check=False).stdout
    elif sys.platform == "win32":
        import winreg

        key = r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, key) as handle:
            name = str(winreg.QueryValueEx(handle, "ProcessorNameString")[0])
    name = " ".join(re.sub(r"\((R|TM|tm)\)", "", name).split())
    return name or f"{platform.machine()} processor"


def _blas_name() -> str:
    known, names = {"openblas": "OpenBLAS", "mkl": "MKL", "blis": "BLIS"}, set()
    for info in blas_libraries().info():
        kernels = info.get("architecture")
        name = known.get(info["internal_api"], info["internal_api"])
        parts = (name, info.get("version"), kernels and f"({kernels})")
        names.add(" ".join(str(part) for part in parts if part))
    # Where threadpoolctl sees none, as Accelerate, what NumPy was built with.
    built_with = np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"].capitalize()
    return " and ".join(sorted(names)) or built_with


@functools.cache
def _lasting() -> dict[str, Any]:
    """What cannot change while the process runs."""
    libraries = ("numpy", "matplotlib", "jupyterlab", "fastdl")
    lanes, highest_ghz = _peak_parts()
    memory_bytes = min(psutil.virtual_memory().total, container_limit("memory"))
    return {
        "cpu": _cpu_model(),
        "memory_gib": round(memory_bytes / 2**30, 1),
        "blas": _blas_name(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in libraries},
        "lanes": lanes,
        "highest_ghz": highest_ghz,
    }


def machine_card() -> MachineCard:
    """Describe this machine: no host name, no user name, no path.

    Cores, threads, GPU and date are those of the moment; the rest is looked up once.
    """
    gpu, lasting = gpu_status(), _lasting()
    # A failed kernel's message may hold a path.
    none = "none. " + re.sub(r"\S*[/\\]\S*", "...", gpu.reason)
    of_the_moment = {
        "cores": usable_cores(),
        "quota_cores": cpu_quota(),
        "blas_threads": blas_threads_now(),
        "gpu": gpu.name if gpu.available else none,
        "versions": lasting["versions"] | gpu.versions,
        "date": datetime.date.today().isoformat(),
    }
    return MachineCard(**lasting | of_the_moment)
