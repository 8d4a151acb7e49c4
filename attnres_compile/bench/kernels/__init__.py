"""``attnres bench kernels``: ``run`` measures; the other files are what it needs, from ``work`` to ``table``."""
