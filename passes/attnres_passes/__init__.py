"""From a captured graph to a rewritten one: analyses, the rewrite, the schedule and the lowering.

Knows FX and torch, never Triton and never the environment.
"""
