"""How a residual stream is carried on without an addition.

``carry.py`` finds the steps and ``factor.py`` those that scale it; ``sums.py`` and ``mixing.py`` know additions and
products that are no such step, but show that something else runs through a model.
"""
