"""Models made of a drawn description, each with its own form with attention residuals, written from the description.

``description.py`` says what can be drawn, ``parts.py`` and ``sublayers.py`` hold what models are made of,
``model.py`` walks a description over a residual stream, plain or of depth attention (``stream.py``), ``near_misses.py``
has the models that must be left alone, and ``judge.py`` compares. ``python -m tests.generated`` judges thousands.
"""
