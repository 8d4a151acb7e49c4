"""From Dynamo's graph to a callable: ``backend`` is the path, one line per step; ``runtime`` is what it returns.

``matching`` finds a graph in the plan of its model. ``parts`` and ``borders`` are for a graph that is a piece of its
model: the sources of the stream come in and go out at run time. ``dump`` keeps levels as text; ``levels`` and
``graph_runs`` take and run graphs one by one, for ``explain`` and ``verify``.
"""
