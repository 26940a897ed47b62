"""The script that a user of TFMOT writes by hand: prune, PQAT, convert, evaluate. What edgeprune's speed is judged against.

    python benchmarks/by_hand.py resnet8.h5 cifar10.npz --prune-epochs 3 --quantize-epochs 1 --nm

It follows TFMOT's guides to the letter and does nothing that they do not ask for: no check, no report, no resume.
"""

from __future__ import annotations

import argparse
import os

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras as keras


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--prune-epochs", type=int, default=3)
    parser.add_argument("--quantize-epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--nm", action="store_true", help="2:4 instead of 50 % by polynomial decay")
    arguments = parser.parse_args()

    with np.load(arguments.data) as data:
        x_train, y_train = data["x_train"].astype("float32"), data["y_train"].reshape(-1)
        x_test, y_test = data["x_test"].astype("float32"), data["y_test"].reshape(-1)
    model = keras.models.load_model(arguments.model, compile=False)

    pruned = prune(model, x_train, y_train, arguments)
    quantized = quantize(pruned, x_train, y_train, arguments)
    tflite = convert(quantized)
    print(f"{len(tflite)} bytes, accuracy {evaluate(tflite, x_test, y_test):.4f}")


def compile_and_fit(
    model: keras.Model, x: np.ndarray, y: np.ndarray, rate: float, epochs: int, batch: int, callbacks: list
) -> None:
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(x, y, batch_size=batch, epochs=epochs, callbacks=callbacks, verbose=2)


def prune(model: keras.Model, x: np.ndarray, y: np.ndarray, arguments: argparse.Namespace) -> keras.Model:
    sparsity = tfmot.sparsity.keras
    steps = arguments.prune_epochs * int(np.ceil(len(x) / arguments.batch_size))
    if arguments.nm:
        schedule, pattern = sparsity.ConstantSparsity(0.5, 0), {"sparsity_m_by_n": (2, 4)}
    else:
        schedule, pattern = sparsity.PolynomialDecay(0.0, 0.5, 0, steps * 6 // 10), {}

    def wrap(layer: keras.layers.Layer) -> keras.layers.Layer:
        if not isinstance(layer, (keras.layers.Conv2D, keras.layers.Dense)):
            return layer
        if arguments.nm and layer.kernel.shape[-2] % 4:
            return layer
        return sparsity.prune_low_magnitude(layer, pruning_schedule=schedule, **pattern)

    wrapped = keras.models.clone_model(model, clone_function=wrap)
    compile_and_fit(wrapped, x, y, 1e-3, arguments.prune_epochs, arguments.batch_size, [sparsity.UpdatePruningStep()])
    return sparsity.strip_pruning(wrapped)


def quantize(model: keras.Model, x: np.ndarray, y: np.ndarray, arguments: argparse.Namespace) -> keras.Model:
    annotated = tfmot.quantization.keras.quantize_annotate_model(model)
    scheme = tfmot.experimental.combine.Default8BitPrunePreserveQuantizeScheme()
    quantized = tfmot.quantization.keras.quantize_apply(annotated, scheme)
    compile_and_fit(quantized, x, y, 3e-4, arguments.quantize_epochs, arguments.batch_size, [])
    return quantized


def convert(model: keras.Model) -> bytes:
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.inference_input_type = tf.int8
    converter.inference_output_type = tf.int8
    return converter.convert()


def evaluate(tflite: bytes, x: np.ndarray, y: np.ndarray) -> float:
    interpreter = tf.lite.Interpreter(model_content=tflite)
    interpreter.allocate_tensors()
    source, sink = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    scale, zero_point = source["quantization"]
    right = 0
    for sample, label in zip(x, y, strict=True):
        values = np.clip(np.round(sample / scale + zero_point), -128, 127).astype(np.int8)
        interpreter.set_tensor(source["index"], values[None])
        interpreter.invoke()
        right += int(interpreter.get_tensor(sink["index"])[0].argmax() == label)
    return right / len(y)


if __name__ == "__main__":
    main()
