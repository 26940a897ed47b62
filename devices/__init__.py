"""Where it runs: one backend per module, one target per file in ``targets/``."""
