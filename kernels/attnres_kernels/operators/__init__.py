"""The operators of torch: read ``definition`` first, then one file per family, forward and backward in one.

``depth_attention`` is a read in the rewritten graph, ``variants`` has those by other mechanisms; ``key_rows``,
``logits``, ``phase_1``, ``merge``, ``read``, ``sources_backward`` and ``own_logits_read`` are what the functions of
``autograd`` call; ``statistics`` is what a recording adds; ``tiles`` helps those on torch calls. Importing the package
defines them all.
"""

from attnres_kernels.operators import (  # noqa: F401  (defines them)
    depth_attention,
    key_rows,
    logits,
    merge,
    own_logits_read,
    phase_1,
    read,
    sources_backward,
    statistics,
)
from attnres_kernels.operators.variants import attention as variant_attention  # noqa: F401
from attnres_kernels.operators.variants import statistics as variant_statistics  # noqa: F401
