"""Captured -> rewritten: ``rewrite`` copies the graph, and ``record`` adds statistics to a copy.

``rewrite_stream`` follows one stream: it appends the placeholders of its queries and key weights, and makes its reads.
"""
