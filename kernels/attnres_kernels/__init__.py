"""Depth attention as operators of torch. Knows tensors, never FX graphs.

From the top: ``autograd`` (what a lowered graph calls), ``operators`` (of torch), ``launch`` (tiles and grids),
``generation`` (Triton text), ``definition`` (plain torch, which every other form is tested against). Importing this
package needs neither a GPU nor Triton.
"""

from attnres_kernels.errors import AttnResError, UnsupportedSourcesError

__all__ = ["AttnResError", "UnsupportedSourcesError"]
