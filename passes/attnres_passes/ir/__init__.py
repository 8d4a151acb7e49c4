"""The representation: what every pass reads and none owns.

``config.py`` and ``plan.py`` say what is asked for and what is found; ``annotations.py`` what a node means;
``levels.py`` which rules a graph of each level keeps; ``text.py`` and ``provenance.py`` show a graph and its places.
"""
