"""Prepared models on torch.distributed.pipelining: ``pipeline`` is the way in, ``rank`` what it returns.

Then in the order of the work: ``agreement`` of the ranks, ``microbatches``, ``build`` of the chunks, ``chunk_module``,
``torch_stage`` (all that is private of torch), ``store`` of blocks, ``schedules``.
"""
