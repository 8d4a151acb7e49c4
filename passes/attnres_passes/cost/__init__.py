"""What the residual mechanism costs, counted from graphs and without running them.

``traffic.py`` counts the bytes of a scheduled graph; ``residual_path.py`` cuts the mechanism out as a graph of its own.
"""
