"""From a captured graph to a lowered one. Knows FX and torch, never Triton and never the environment.

A graph goes through ``pipeline.py``, one straight function; every level has a folder, every folder a file to begin
with:

captured   what Dynamo hands over. ``analyses/`` run it once on fake tensors (``aten_recorder.py``), find the residual
           streams and their reads, choose the blocks, and give a plan (``streams.py``).
rewritten  ``rewrite/``: each read becomes a depth attention over the sources of the plan (``rewrite.py``).
           ``ranks/`` cut such a graph into pipeline chunks (``stages.py``) or its tokens into shards
           (``shard_sequence.py``).
scheduled  ``schedule/``: consecutive reads share one pass over completed blocks (``schedule.py``), and take the add
           before them and the norm behind them into their kernels (``fuse.py``).
lowered    ``lower/``: what is left of ours is bound to torch calls or to generated kernels (``lower.py``).

Beside these: ``ir/`` says what a level is and what its nodes mean (``levels.py``), ``cost/`` counts what the
residual path moves (``traffic.py``), ``torch_private/`` holds every private name of torch.
"""
