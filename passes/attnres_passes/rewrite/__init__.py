"""Captured -> rewritten: ``rewrite`` copies the graph, ``rewrite_stream`` follows one stream; ``record`` adds
statistics to a copy.
"""
