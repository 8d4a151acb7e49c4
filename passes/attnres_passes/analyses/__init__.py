"""What is found out about a graph. Nothing here changes one: each analysis returns frozen data.

In order: ``aten_recorder.py`` runs the graph and gives an ``aten_trace.py``, as ``eager/`` does of a model that Python
runs; ``chains.py`` finds additions in a row (``carries/`` know what carries a stream from one to the next),
``reads.py`` who reads their states and whether a norm is behind it (``degrees/`` say how values scale),
``shared_reads.py`` joins the reads of one sublayer's input, ``stream_nodes.py`` finds the nodes, ``blocks.py`` chooses
the blocks. ``streams.py`` puts this together into a plan, ``exclusions/`` say why a chain is left
out, and ``declines.py`` what of that a person reads; ``piece.py`` finds the part of a plan that one graph of a broken
model holds. ``arguments/`` tell q, k and v of an attention apart, behind a norm. ``norms/`` look at rewritten graphs,
for fusion.
"""
