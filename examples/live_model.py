"""A model of your own, trained in this script, to an int8 file with 2:4 zeros. Run: python examples/live_model.py"""

from __future__ import annotations

import sys

from sklearn.datasets import load_digits

import edgeprune
from edgeprune.keras import keras


def main(epochs: int = 15, out: str = "runs/live-model") -> None:
    """Train, build, and say what came out."""
    digits = load_digits()
    x, y = digits.images[..., None], digits.target
    train, test = (x[:1400], y[:1400]), (x[1400:], y[1400:])  # what judges the build must be new to the model

    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Conv2D(16, 3, padding="same", activation="relu", input_shape=(8, 8, 1)),
            layers.Conv2D(32, 3, strides=2, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(*train, epochs=epochs, verbose=0)

    result = edgeprune.build(
        model,
        (train, test),
        target="rpi4",
        recipe="nm24",
        overrides={"stages.prune.epochs": epochs, "stages.quantize.epochs": max(1, epochs // 3)},
        max_drop=0.02,
        out=out,
        force=True,
    )
    final = result.report["candidates"]["final"]
    print(f"{result.tflite}: accuracy {final['metric']:.4f}, {final['size_gzip_bytes'] / 1024:.1f} KiB compressed")
    if result.missed:
        sys.exit(f"missed: {', '.join(result.missed)}")


if __name__ == "__main__":
    main()
