"""Captured -> rewritten: ``rewrite`` copies the graph; ``rewrite_stream`` follows one stream, appends the placeholders of
its queries and key weights, and makes its reads; ``record`` adds statistics to a copy.
"""
