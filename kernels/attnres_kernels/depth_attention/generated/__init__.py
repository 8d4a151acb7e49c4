"""Depth attention as Triton kernels, generated for one number of sources, reads and fused neighbours.

- ``specs``: what a kernel is generated for; frozen and hashable. ``moved``: what it reads and writes.
- ``logits``, ``phase_1``, ``read``, ``read_backward``, ``sources_backward``, ``own_read``, ``own_read_backward``: from
  a spec to Triton text.
- ``tiling``, ``own_tiling``: tile sizes and warps by width, static tables. ``candidates``: others to tune over.
- ``launch_phase_1``, ``launch_read``, ``launch_sources_backward``, ``launch_own_read``: from tensors to tensors, one
  function per kernel.
- ``operators``, ``own_operators``: the launches as operators of torch.
- ``catalogue``: all kernels of a block, for compiling them offline.
"""
