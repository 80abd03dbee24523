"""The dozen names that every chapter uses, each loaded when it is first asked for.

The rest is imported from the wing it belongs to, such as ``from fastdl_lib.nn.layers import
Conv2d``. Importing this package changes nothing in the process and loads no other library.

>>> import fastdl_lib as fdl
>>> fdl.deep_convnet().parameter_count
123552
"""

import importlib
from typing import Any

_HOMES = {
    "Measurement": "measuring.evidence",
    "Provenance": "measuring.evidence",
    "alexnet": "nn.zoo",
    "benchmark": "measuring.timing",
    "claim_table": "measuring.evidence",
    "deep_convnet": "nn.zoo",
    "explore": "figures.explore",
    "machine_card": "measuring.machine",
    "mnist": "core.datasets",
    "photos": "core.datasets",
    "predict": "figures.explore",
    "published": "measuring.published",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__
