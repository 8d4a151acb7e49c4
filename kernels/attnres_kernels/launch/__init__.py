"""From tensors to launches of generated kernels: tiles, choices, allocation and grids.

Read ``launch_phase_1`` first, then the other ``launch_`` files in the order a read uses them. Tile sizes and warps:
``tiling``, ``own_logits_tiling``, ``candidates``, ``tuning``. ``split_sources_backward`` says how many launches that
backward takes, ``rows`` lays tensors out, and ``load_triton`` compiles a text into a kernel.
"""
