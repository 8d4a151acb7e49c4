"""What a model does with its depth attentions while it runs: ``with depth_weights(model) as w``.

``depth_weights`` opens a recording, ``graph`` makes a compiled graph record, ``sublayers`` tells attention from MLP,
``record`` is what comes out, ``table`` and ``plot`` show it.
"""
