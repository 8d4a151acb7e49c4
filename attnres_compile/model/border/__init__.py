"""Where a residual stream crosses from one graph of a model to the next, or to Python and back.

``known_states`` knows the sources of every state that is between graphs; ``call_reads`` which reads of the plan one
call of the model has made; ``python_reads`` makes those whose module Python runs. ``part_of`` finds the model of a
part.
"""
