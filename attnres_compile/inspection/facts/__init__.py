"""The facts of a model as frozen data (``facts``), and how they are found (``build``, ``kernels``)."""
