"""Repeated layers as one: what a layer is (``layers``), and where it repeats (``folding``)."""
