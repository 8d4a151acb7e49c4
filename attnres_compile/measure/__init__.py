"""Everything with a clock: the plain against the AttnRes model, and the passes by depth.

``timing`` takes paired samples; ``model_pair`` makes the two models; ``overhead`` adds measured rows to the counted
ones, ``model`` is ``attnres bench model`` and ``analysis`` is ``attnres bench analysis``.
"""
