"""The norms that read depth attentions, for fusion.

``norm_behind.py`` searches the graph behind a read; ``formula.py`` executes what it finds and compares it with norms.
"""
