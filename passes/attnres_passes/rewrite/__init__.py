"""Captured -> rewritten: ``rewrite`` copies the graph, ``rewrite_stream`` follows a stream; ``record`` adds statistics.
