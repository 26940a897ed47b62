"""edgeprune: a Keras model and a target in, the smallest int8 TFLite model that keeps the accuracy out.

>>> import edgeprune
>>> result = edgeprune.build(model, data, target="rpi4", recipe="poly50")  # doctest: +SKIP
>>> result.report["candidates"]["final"]["metric"]                          # doctest: +SKIP
0.981

Importing this package imports neither TensorFlow nor NumPy.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["Result", "__version__", "build"]


def __getattr__(name: str) -> Any:
    if name in ("build", "Result"):
        from edgeprune import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
