"""In which order: one stage per module, one recipe per file in ``recipes/``."""
