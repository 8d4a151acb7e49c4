"""Models trained with and without AttnRes on real text: which of them is better, at sizes that two CPU cores train.

    python -m kernels.benchmarks.training quality      rows against the plain model, at equal tokens and more
    python -m kernels.benchmarks.training retrofit     a trained plain model goes on, as it is and converted
    python -m kernels.benchmarks.training plan         what is done and what is left

``text`` is what they are trained on, ``grid`` the sizes, rows and runs as data, ``order`` which of them come first,
``model`` and ``training`` make one run, ``retrofit`` the runs of the second table, ``dynamics`` what is recorded of a
trained model, ``record`` keeps them, ``tables`` and ``pictures`` show them. docs/results.md is made of the records.
"""
