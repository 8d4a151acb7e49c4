"""From a model and example inputs to graphs (``capture``), and from graphs to a plan (``analysis``); in this order.

``graph_breaks`` raises GraphBreakError where a break cuts a stream, ``capture`` where Dynamo makes no graph at all.
``functions`` names what a call may run, ``pieces`` collects several graphs of one call, and ``cuts`` finds the streams
that run through more than one.
``eager_trace`` runs a model uncompiled, for a plan over all of its graphs.
``weightless`` copies a model without its data.
"""
