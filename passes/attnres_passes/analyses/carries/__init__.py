"""How a residual stream is carried on without an addition: ``carry.py`` finds the steps, ``factor.py`` those that scale."""
