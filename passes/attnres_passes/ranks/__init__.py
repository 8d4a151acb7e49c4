"""A rewritten graph over several ranks: pipeline chunks, or shards of the sequence.

Chunks: ``layout.py`` says which rank runs which, ``cuts.py`` where the stream is cut, ``transfers.py`` what crosses;
``stages.py`` marks the graph so, ``split_stages.py`` takes it apart. Shards: ``shard_sequence.py`` and ``shards.py``.
"""
