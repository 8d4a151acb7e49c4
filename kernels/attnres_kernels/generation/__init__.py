"""The text of the Triton kernels, one file per kernel; the backwards have their formulas at the top.

Read ``specs`` first, what a kernel is generated for, and ``triton_text``, the pieces that all are written with; then
``logits``, ``phase_1``, ``read`` and the others in the order of a read; ``traffic`` counts what each of them moves.
"""
