"""What a prepared model carries: its parameters and plan, notes on what was compiled, and the errors.

Begin with ``parameters``; ``owner`` finds the model of a graph, ``status`` and ``optimizer_check`` watch over it.
"""
