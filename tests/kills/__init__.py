"""Training that is killed at random moments, resumed, and held against the run that was not.

``ways`` trains and saves, in a process of its own; ``life`` starts such a process and kills it; ``trial`` kills one
training many times over and judges what came of it. ``python -m tests.kills`` does that for every way.
"""
