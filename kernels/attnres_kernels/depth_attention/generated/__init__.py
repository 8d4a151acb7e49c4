"""Depth attention as Triton kernels, generated for one number of sources, reads and fused neighbours.

- ``specs``: what a kernel is generated for; frozen and hashable.
- ``logits``, ``phase_1``, ``phase_1_backward``, ``phase_2``, ``phase_2_backward``: from a spec to Triton text.
- ``tiling``: tile sizes and warps by width, a static table.
- ``launch_phase_1``, ``launch_phase_2``: from tensors to tensors, one function per kernel.
- ``catalogue``: all kernels of a block, for compiling them offline.
"""
