"""From a model and example inputs to graphs (``capture``), and from graphs to a plan (``analysis``); in this order.

Both raise GraphBreakError: ``capture`` where Dynamo makes no graph at all, ``analysis`` where a break cuts a stream.
``weightless`` copies a model without its data.
"""
