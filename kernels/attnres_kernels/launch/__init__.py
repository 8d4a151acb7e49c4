"""From tensors to launches of generated kernels: tiles, choices, allocation and grids.

Read ``launch_phase_1`` first and the other ``launch_`` files as they come in a read; ``tiling``, ``candidates`` and
``tuning`` say with which numbers a kernel is launched, and ``load_triton`` makes a kernel of a text.
"""
