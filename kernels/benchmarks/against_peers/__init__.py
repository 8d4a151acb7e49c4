"""Generated kernels against torch code and other people's kernels: ``python -m kernels.benchmarks peers``.

``work`` says what every arm does, ``arms`` how each does it; ``gate`` lets those pass that are right, ``timing`` times
them, ``cell`` does both for one shape and ``run`` for a grid; ``table`` and ``plot`` show a record.
"""
