"""Captured to rewritten: ``rewrite.py`` copies the graph, ``rewrite_stream.py`` follows one stream through it.

``record.py`` adds, to a rewritten graph, the outputs that a recording of depth weights asks for.
"""
