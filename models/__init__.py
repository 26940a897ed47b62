"""What runs: one network or model wrapper per module. ``build()`` returns an untrained tf_keras model."""
