"""The converter in a process of its own: ``python -m edgeprune.keras.conversion_worker``.

The converter can take its process down with it (GRU and SimpleRNN do), so it never runs in the user's. Requests come as
JSON lines on standard input and are answered one by one on standard output; all that TensorFlow says goes to standard
error. The worker ends when its input does, so it never outlives the build, not even one that was killed.

A request: ``{"saved_model": folder, "output": file, "representative": .npz or null, "io": "int8" | "uint8" |
"float32", "per_channel_dense": bool}``. The answer: ``{"seconds": ...}`` or ``{"error": message}``.
"""

from __future__ import annotations

import faulthandler
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np


def convert(request: dict[str, Any]) -> None:
    """Convert the signature ``one`` of a SavedModel and write the .tflite file.

    Raises:
        Exception: whatever the converter raises.
    """
    from edgeprune.keras import tf

    converter = tf.lite.TFLiteConverter.from_saved_model(request["saved_model"], signature_keys=["one"])
    if request["io"] != "float32":
        # Without it a QAT model's ranges are ignored: the file is float, and nobody says a word.
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.inference_input_type = converter.inference_output_type = tf.as_dtype(request["io"])
        converter._experimental_disable_per_channel_quantization_for_dense_layers = not request["per_channel_dense"]
    if request["representative"] is not None:
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.representative_dataset = lambda: _samples(Path(request["representative"]))
    Path(request["output"]).write_bytes(converter.convert())


def _samples(path: Path) -> Iterator[dict[str, np.ndarray]]:
    """One sample at a time, batch 1, by input name."""
    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    for index in range(len(next(iter(arrays.values())))):
        yield {name: array[index : index + 1] for name, array in arrays.items()}


def main() -> None:
    """Answer requests until there are no more."""
    answers = _private_stdout()
    faulthandler.enable()
    requests: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read, args=(requests,), daemon=True).start()
    from edgeprune.keras import tf  # noqa: F401 - while the parent still prepares its first request

    while True:
        request = json.loads(requests.get())
        started = time.monotonic()
        try:
            convert(request)
            answer: dict[str, Any] = {"seconds": round(time.monotonic() - started, 3)}
        except Exception as error:  # the converter raises what it likes; the parent turns it into a ConversionError
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


def _read(requests: queue.Queue[str]) -> None:
    """Pass the lines of standard input on; at its end the parent is gone, and so is the reason to go on."""
    for line in sys.stdin:
        requests.put(line)
    os._exit(0)


def _private_stdout() -> TextIO:
    """Standard output for the answers alone: whoever else prints, C++ included, prints to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


if __name__ == "__main__":
    main()
