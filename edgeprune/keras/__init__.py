"""The one place that decides which Keras: tf_keras (Keras 2), which is what TFMOT builds on.

Import ``tf`` and ``keras`` from here and TFMOT from `edgeprune.keras.tfmot`, never from elsewhere. ``TF_USE_LEGACY_KERAS`` is
set before TensorFlow is first imported, so that ``tf.keras`` and TFMOT's Keras are the same module; where the user's notebook
has imported TensorFlow with Keras 3 already, TFMOT itself falls back to tf_keras, so the two still agree.

oneDNN's kernels are left aside unless the user asks for them: `edgeprune.keras.onednn` says why.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from edgeprune.quiet import quiet

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")


@contextmanager
def importing() -> Iterator[None]:
    """Without what the packages have to say.

    Raises:
        MissingDependency: a package is not installed.
    """
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ModuleNotFoundError as error:
        from edgeprune.errors import MissingDependency

        raise MissingDependency(
            f"Building needs the Python package '{error.name}', which is not installed. "
            'Install it: pip install "edgeprune[host]" (`edgeprune doctor` shows what is missing).'
        ) from error


with importing():
    import tensorflow as tf
    import tf_keras as keras

tf.get_logger().setLevel("ERROR")

__all__ = ["importing", "keras", "tf"]
