"""The overhead table of a model: what AttnRes adds to it, counted without weights and without a clock.

``parallel`` says what is checkpointed and sharded, ``counting`` executes graphs without data, ``rows`` makes rows of
what was counted, ``table`` is the report of them, ``block_sweep`` counts at several numbers of blocks, and ``pages``
draws. ``attnres_compile.measure`` adds measured rows to the table; what such a row holds (``comparison``) and what
every record says of its environment (``records``) are here, so that this folder knows no clock.
"""
