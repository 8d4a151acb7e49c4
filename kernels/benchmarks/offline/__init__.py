"""Generated kernels compiled for GPUs that are not there: ``python -m kernels.benchmarks offline``.

``catalogue`` lists the kernels of a block, ``compilation`` compiles one, ``machine_code`` and ``occupancy`` say what it
needs, and ``record`` does so for a grid of shapes.
"""
