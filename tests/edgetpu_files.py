"""Small .tflite files for the Edge TPU's rules: one op, a convolution, a chain, and what their tensors are made of."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from tflite_files import build, operator, tensor

from edgeprune import registry, target, tflite
from edgeprune.devices import _edgetpu_facts as edgetpu_facts
from edgeprune.devices import _edgetpu_mapping as mapping

FACTS = edgetpu_facts.facts()
QUANTIZED = {"scale": [0.5], "zero": [0]}


def load(name):
    return target.load(registry.file("targets", name))


def act(name, shape, dtype="INT8"):
    """An activation."""
    return tensor(name, shape, dtype, **(QUANTIZED if dtype in ("INT8", "UINT8") else {}))


def const(name, values, dtype="INT32"):
    data = np.array(values, dtype.lower())
    return tensor(name, data.shape, dtype, data=data.tobytes(), **(QUANTIZED if dtype == "INT8" else {}))


def kernel(shape, scales=1):
    return tensor("w", shape, data=np.ones(shape, np.int8).tobytes(), scale=[0.5] * scales, zero=[0] * scales)


def one(kind, given, made, constants=(), dtype="INT8", made_dtype=None, options=None, **fields):
    """A file of one op: activations, then constants."""
    tensors = [act("given", given, dtype), *constants, act("made", made, made_dtype or dtype)]
    last = len(tensors) - 1
    return read([operator(kind, range(last), [last], options, **fields)], tensors, [0], [last])


def read(operators, tensors, inputs, outputs):
    return tflite.read(build(tensors, operators, inputs=inputs, outputs=outputs))


def verdict(file):
    return mapping.verdicts(file, FACTS)[-1]


def convolution(given=(1, 8, 8, 4), filters=8, size=1, scales=1, **fields):
    made = (*given[:3], filters)
    options = {"strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1} | fields
    tensors = [
        act("given", given),
        kernel((filters, size, size, given[3]), scales),
        const("b", [0] * filters),
        act("made", made),
    ]
    return read([operator("CONV_2D", [0, 1, 2], [3], "Conv2DOptions", **options)], tensors, [0], [3])


# --- mapping: what depends on what


def chain():
    """A QUANTIZE of float; two branches, one through an op that no Edge TPU has; both joined; a class index at the end."""
    tensors = [
        act("image", (1, 4, 4, 8), "FLOAT32"),
        act("q", (1, 4, 4, 8)),
        act("good", (1, 4, 4, 8)),
        act("bad", (1, 4, 4, 8)),
        act("bad2", (1, 4, 4, 8)),
        act("good2", (1, 4, 4, 8)),
        act("sum", (1, 4, 4, 8)),
        const("axis", 3),
        act("index", (1, 4, 4), "INT32"),
    ]
    operators = [
        operator("QUANTIZE", [0], [1]),
        operator("RELU", [1], [2]),
        operator("HARD_SWISH", [1], [3]),
        operator("RELU", [3], [4]),
        operator("TANH", [2], [5]),  # behind the op that stays on the CPU, but not dependent on it
        operator("ADD", [4, 5], [6]),
        operator("ARG_MAX", [6, 7], [8]),
    ]
    return read(operators, tensors, [0], [8])


def path_without_compiler():
    """PATH without the folders that hold the real compiler."""
    folders = os.environ["PATH"].split(os.pathsep)
    return os.pathsep.join(path for path in folders if not (Path(path) / "edgetpu_compiler").exists())
