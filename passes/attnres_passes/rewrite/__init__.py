"""Captured -> rewritten: ``rewrite`` copies the graph, and ``record`` adds statistics to a copy.

``placeholders`` appends those of queries and key weights; ``rewrite_stream`` follows one stream and makes its reads.
"""
