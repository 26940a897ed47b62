"""The one place that imports TFMOT, and from its insides what has no public name.

It brings Keras 3 with it, which takes a third of the whole start: what can do without does not import this.
"""

from __future__ import annotations

from edgeprune.keras import importing

with importing():
    from tensorflow_model_optimization import experimental, quantization, sparsity
    from tensorflow_model_optimization.python.core.clustering.keras import (
        cluster_config,
        cluster_wrapper,
        clustering_algorithm,
        clustering_centroids,
    )
    from tensorflow_model_optimization.python.core.quantization.keras import (
        quantize_layer,
        quantize_wrapper,
        quantizers,
    )
    from tensorflow_model_optimization.python.core.quantization.keras.default_8bit import default_8bit_quantizers
    from tensorflow_model_optimization.python.core.sparsity.keras import pruning_impl, pruning_wrapper

__all__ = [
    "cluster_config",
    "cluster_wrapper",
    "clustering_algorithm",
    "clustering_centroids",
    "default_8bit_quantizers",
    "experimental",
    "pruning_impl",
    "pruning_wrapper",
    "quantization",
    "quantize_layer",
    "quantize_wrapper",
    "quantizers",
    "sparsity",
]
