"""What a model does with its depth attentions while it runs: ``with depth_weights(model) as w``.

``live`` opens a recording, ``graph`` makes a compiled graph record, ``sublayers`` tells attention from MLP;
``recorded`` is the data that comes out, ``table`` and ``plot`` show it, ``weights`` is what the user holds.
"""
