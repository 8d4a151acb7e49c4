"""What is found out about a captured graph. Nothing here changes one: each analysis returns frozen data.

In order: ``aten_recorder.py`` runs the graph, ``chains.py`` finds additions in a row, ``reads.py`` who reads their
states and whether a norm is behind it, ``stream_nodes.py`` the nodes, ``blocks.py`` the blocks. ``streams.py`` puts
this together into a plan, ``declines.py`` says why a chain is left out. ``norms/`` look at rewritten graphs.
"""
