"""Everything with a clock: the plain against the AttnRes model, and the passes by depth.

``timing`` takes paired samples; ``model_pair`` makes the two models; ``overhead`` adds measured rows to the counted
ones. ``model`` is ``attnres bench model``, with ``decode``, ``compile_time`` and ``device_cost`` for its cells and
``model_table`` and ``model_plot`` (by ``figures``) to show them; ``analysis`` is ``attnres bench analysis``.
"""
