"""Operators of the depth attention and their oracles; they know tensors and never FX graphs.

Importing this package needs neither a GPU nor Triton.
"""

from attnres_kernels.errors import AttnResError, UnsupportedSourcesError

__all__ = ["AttnResError", "UnsupportedSourcesError"]
