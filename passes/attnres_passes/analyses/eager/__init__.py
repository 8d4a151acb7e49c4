"""The trace of a model that Python runs: ``recorder``, with names by ``module_paths`` and results by ``holders``."""
