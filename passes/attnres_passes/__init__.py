"""From a captured graph to a lowered one. Knows FX and torch, never Triton.

A graph's path is in ``pipeline.py``, one straight function. Every level has its folder, and each folder a file to start
from:

captured   what Dynamo hands over. ``inline/`` opens checkpoints and nested regions (``open_regions.py``); behind the
           last level it closes checkpoints again (``close_regions.py``). ``analyses/`` run the graph once on fake
           tensors (``aten_recorder.py``), find the residual streams and their reads, choose the blocks, and give a plan
           (``streams.py``).
rewritten  ``rewrite/``: each read becomes a depth attention over the sources of the plan (``rewrite.py``).
           ``ranks/`` mark such a graph with pipeline chunks (``stages.py``) and take it apart (``split_stages.py``), or
           cut its tokens into shards (``shard_sequence.py``).
scheduled  ``schedule/``: consecutive reads share one pass over completed blocks (``schedule.py``), and take the add
           before them and the norm behind them into their kernels (``fuse.py``).
lowered    ``lower/``: what is left of ours is bound to torch calls or to generated kernels (``lower.py``).

Off this path: ``ir/`` says what a level is and what its nodes mean (``levels.py``), ``cost/`` counts what the residual
path moves (``traffic.py``), ``torch_private/`` holds the private names of torch. One file reads the environment,
``schedule/provider.py`` (ATTNRES_KERNELS).
"""
