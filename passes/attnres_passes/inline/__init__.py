"""What is changed in a captured graph before it is rewritten, and put back behind the last level.

Regions are calls that hide a part of the model in a body, opened before analysis and closed again.

``open_regions`` puts the bodies of ``torch.utils.checkpoint`` and ``torch.compiler.nested_compile_region`` in place of
their calls, ``labels`` names the modules of a body that several layers share, and ``close_regions`` makes checkpoints
of what the passes made of them, for the inner compiler.

``norms_apart`` copies the norm behind a read for q, k and v, where each is to have a read of its own.
"""
