"""Stages without TensorFlow, named by dotted path in the recipes of test_pipeline."""
