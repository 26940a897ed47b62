"""A report as a build of a small residual network writes it, and one in which nothing was found out."""

from __future__ import annotations

import copy
import sys
from typing import Any

STEM = "3 input channels are not divisible by 4"
DEPTHWISE = "a depthwise convolution has one input channel per filter"


def _layer(name, kind, params, reason=None, sparsity=0.5):
    pruned = reason is None
    return {
        "name": name,
        "type": kind,
        "params": params,
        "prunable": pruned,
        "reason": reason,
        "granularity": "2:4" if pruned else None,
        "sparsity_target": 0.5 if pruned else None,
        "sparsity_keras": sparsity if pruned else 0.0,
        "sparsity": sparsity if pruned else 0.004,
        "n_of_m": {"n": 2, "m": 4, "share": 1.0} if pruned else None,
        "tensor": f"{name}/kernel",
    }


_LAYERS = [
    _layer("stem_conv", "Conv2D", 432, STEM),
    _layer("stage1_block1_conv1", "Conv2D", 2304),
    _layer("stage1_block1_conv2", "Conv2D", 2304),
    _layer("stage2_block1_conv1", "Conv2D", 4608),
    _layer("stage2_block1_conv2", "Conv2D", 9216, sparsity=0.5208),
    _layer("stage2_block1_depthwise", "DepthwiseConv2D", 288, DEPTHWISE),
    _layer("stage2_block1_shortcut", "Conv2D", 512),
    _layer("stage3_block1_conv1", "Conv2D", 18432),
    _layer("stage3_block1_conv2", "Conv2D", 36864),
    _layer("stage3_block1_shortcut", "Conv2D", 2048),
    _layer("head_dense", "Dense", 640),
]

_OPS = [
    ("CONV_2D", 442_368, "int8", "stem_conv"),
    ("CONV_2D", 2_359_296, "int8", "stage1_block1_conv1"),
    ("CONV_2D", 2_359_296, "int8", "stage1_block1_conv2"),
    ("ADD", 0, "int8", "stage1_block1_add"),
    ("CONV_2D", 1_179_648, "int8", "stage2_block1_conv1"),
    ("CONV_2D", 2_359_296, "int8", "stage2_block1_conv2"),
    ("DEPTHWISE_CONV_2D", 73_728, "int8", "stage2_block1_depthwise"),
    ("CONV_2D", 131_072, "int8", "stage2_block1_shortcut"),
    ("ADD", 0, "int8", "stage2_block1_add"),
    ("CONV_2D", 1_179_648, "int8", "stage3_block1_conv1"),
    ("CONV_2D", 2_359_296, "int8", "stage3_block1_conv2"),
    ("CONV_2D", 131_072, "int8", "stage3_block1_shortcut"),
    ("ADD", 0, "int8", "stage3_block1_add"),
    ("MEAN", 0, "int8", "pool"),
    ("DEQUANTIZE", 0, "float32", "head_swish"),
    ("HARD_SWISH", 0, "float32", "head_swish"),
    ("QUANTIZE", 0, "int8", "head_swish"),
    ("FULLY_CONNECTED", 640, "int8", "head_dense"),
]


def _epochs(count, start, sparsity, learning_rate):
    return [
        {
            "epoch": epoch,
            "loss": round(start / (1 + 0.35 * epoch) + 0.02 * (epoch % 3), 4),
            "accuracy": round(1 - start / (4 + 3 * epoch), 4),
            "val_loss": round(start / (1 + 0.3 * epoch) + 0.05 + 0.03 * (epoch % 2), 4),
            "val_accuracy": round(1 - start / (3.6 + 2.6 * epoch), 4),
            "learning_rate": learning_rate,
            "sparsity": sparsity(epoch / count),
            "seconds": 3.2,
        }
        for epoch in range(1, count + 1)
    ]


def _polynomial(progress):
    return round(0.5 * (1 - (1 - min(progress / 0.75, 1)) ** 3), 4)


_HISTORY = {
    "prune": {
        "epochs": _epochs(12, 0.42, _polynomial, 1e-3),
        "schedule": [{"epoch": 12 * i / 24, "sparsity": _polynomial(i / 24)} for i in range(25)],
    },
    "quantize": {"epochs": _epochs(5, 0.2, lambda progress: 0.5, 1e-4), "schedule": []},
}

_NO_BOARD = "no board was given; times under emulation are not a board's (give one with --board USER@HOST)"
_WORDS = [
    "On a Raspberry Pi 4 the zeros of this int8 model buy no latency: the runtime expands sparse weights to dense when "
    "it starts, and its sparse kernels are for float weights. They do not shrink the raw file either.",
    "They do shrink the compressed file, which is what a download or an update over the air transfers: 75.3 KiB dense, "
    "53.9 KiB here. The 2:4 pattern also pays on NPUs with weight compression.",
]


def sample() -> dict[str, Any]:
    """A whole report; a fresh copy that a test may change."""
    report = {
        "schema": 1,
        "edgeprune": "0.1.0",
        "target": "rpi4",
        "target_title": "Raspberry Pi 4",
        "seed": 0,
        "run": {
            "name": "resnet8-cifar10",
            "created": "2026-11-20T11:05:42+00:00",
            "recipe_name": "sparse24",
            "command": "edgeprune build resnet8.h5 --data cifar10.npz --target rpi4 --recipe sparse24",
        },
        "recipe": {
            "name": "sparse24",
            "seed": 0,
            "stages": [
                {"evaluate": {}},
                {"prune": {"granularity": "2:4", "final": 0.5, "epochs": 12, "schedule": "polynomial"}},
                {"quantize": {"epochs": 5, "learning_rate": 0.0001}},
                {"convert": {}},
            ],
        },
        "metric": {"name": "accuracy", "higher_is_better": True, "split": "test", "samples": 2000},
        "model": {
            "source": "resnet8.h5",
            "name": "resnet8",
            "input": {
                "shape": [32, 32, 3],
                "dtype": "int8",
                "scale": 0.00392157,
                "zero_point": -128,
                "preprocess": {"scale": 0.00392157, "offset": 0.0},
            },
            "output": {"shape": [10], "dtype": "int8", "scale": 0.00390625, "zero_point": -128},
            "labels": ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
        },
        "data": {
            "source": "cifar10.npz",
            "task": "classification",
            "classes": 10,
            "seed": 0,
            "splits": {
                "train": {"samples": 9000, "used_for": ["prune", "quantize"]},
                "calibration": {"samples": 256, "used_for": ["quantize", "dense_int8"], "part_of": "train"},
                "validation": {"samples": 1000, "used_for": ["monitoring"]},
                "test": {"samples": 2000, "used_for": ["metric"]},
            },
        },
        "candidates": {
            "float": {
                "file": "float.tflite",
                "metric": 0.874,
                "size_bytes": 318_220,
                "size_gzip_bytes": 294_018,
                "params": 78_666,
                "macs": 12_575_360,
                "sparsity": 0.0,
                "latency": {"ms": None, "reason": _NO_BOARD},
            },
            "dense_int8": {
                "file": "dense_int8.tflite",
                "metric": 0.8725,
                "size_bytes": 96_136,
                "size_gzip_bytes": 77_104,
                "params": 78_666,
                "macs": 12_575_360,
                "sparsity": 0.0121,
                "latency": {"ms": 3.4, "kind": "predicted", "error_pct": 9.6, "threads": 4},
            },
            "final": {
                "file": "model.tflite",
                "metric": 0.87,
                "size_bytes": 96_304,
                "size_gzip_bytes": 55_210,
                "params": 78_666,
                "macs": 12_575_360,
                "sparsity": 0.4958,
                "latency": {"ms": 3.4, "kind": "predicted", "error_pct": 9.6, "threads": 4},
            },
        },
        "stages": [
            {"name": "evaluate", "seconds": 4.21},
            {"name": "prune", "seconds": 48.9},
            {"name": "quantize", "seconds": 31.02},
            {"name": "convert", "seconds": 9.4},
            {"name": "verify", "seconds": 3.3},
        ],
        "quantization": {
            "trained": True,
            "mixed": True,
            "layers": [
                {"name": "stem_conv", "kind": "Conv2D", "how": "trained", "reason": None},
                {"name": "stem_relu", "kind": "ReLU", "how": "fused", "reason": None},
                {"name": "pool", "kind": "MaxPooling2D", "how": "passed on", "reason": None},
                {"name": "norm_1", "kind": "LayerNormalization", "how": "post-training", "reason": "it is several ops"},
                {"name": "norm_2", "kind": "LayerNormalization", "how": "post-training", "reason": "it is several ops"},
            ],
            "rewrites": [{"name": "pairwise", "layers": ["stage1_block1_add"]}],
        },
        "history": _HISTORY,
        "layers": _LAYERS,
        "ops": [
            {"index": index, "op": op, "macs": macs, "dtype": dtype, "layer": layer}
            for index, (op, macs, dtype, layer) in enumerate(_OPS)
        ],
        "verify": {
            "int8_share": 16 / 18,
            "float_ops": [
                {"index": 14, "op": "DEQUANTIZE", "layer": "head_swish"},
                {"index": 15, "op": "HARD_SWISH", "layer": "head_swish"},
            ],
            "zeros_match": True,
            "n_of_m_match": True,
            "metric": {"keras_float": 0.874, "fake_quant": 0.8705, "tflite": 0.87},
            "agreement": 0.999,
            "largest_difference_steps": 1,
            "samples": 64,
            "compared_with": "fake-quantized Keras",
            "layers": [
                {"layer": "stem", "snr_db": 41.3, "op": "CONV_2D"},
                {"layer": "head", "snr_db": 7.9, "op": "FULLY_CONNECTED"},
                {"layer": "scores", "snr_db": 120.0, "op": "SOFTMAX"},
            ],
            "first_divergence": None,
        },
        "arm": {
            "runtime": "tflite-runtime 2.14.0",
            "cpu": "cortex-a72",
            "emulated": True,
            "samples": 500,
            "selection": "stratified part of the test split",
            "metric": 0.872,
            "host_metric": 0.87,
            "agreement": 0.996,
            "largest_difference_steps": 3,
            "arena_bytes": 58_432,
            "peak_rss_bytes": 31_457_280,
        },
        "zeros": {"words": _WORDS},
        "budget": {
            "max_drop": {"limit": 0.01, "actual": 0.004, "met": True},
            "max_size_kib": {"limit": 90, "actual": 94.05, "met": False},
            "max_latency_ms": {"limit": 8, "actual": None, "reason": _NO_BOARD},
        },
        "environment": {
            "python": "3.11.2",
            "platform": "Linux-6.1-x86_64",
            "packages": {"tensorflow": "2.21.0", "tf_keras": "2.21.0", "tensorflow-model-optimization": "0.8.1"},
        },
        "notes": ["1 op runs in float: HARD_SWISH has no int8 kernel in this runtime."],
    }
    return copy.deepcopy(report)


def plain() -> dict[str, Any]:
    """The sample with every op in int8: the common case, without a fall-back to report."""
    report = sample()
    report["ops"] = [{**op, "dtype": "int8"} for op in report["ops"] if op["layer"] != "head_swish"]
    report["verify"].update(int8_share=1.0, float_ops=[])
    report["notes"] = []
    return report


def bare() -> dict[str, Any]:
    """The least that is a report, with figures absent for a reason."""
    return {
        "schema": 1,
        "edgeprune": "0.1.0",
        "target": "coral-usb",
        "metric": {"name": "mae", "higher_is_better": False},
        "candidates": {
            "float": {"metric": 0.12, "latency": {"ms": None, "reason": "no board was given"}},
            "final": {"reason": "interrupted before conversion"},
        },
        "arm": {"reason": "the emulator is not installed", "how": "edgeprune emulator install"},
    }


# Before a command: Ctrl-C counts for it, even where the suite itself is a shell's background job, which ignores it.
HEARING_INTERRUPTS = [
    sys.executable,
    "-c",
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])",
]
