"""What a prepared model carries: its parameters and plan, notes on what was compiled, and the errors.

Begin with ``parameters``; ``in_force`` guards the model against plain runs, ``plan_tensor`` is the plan in the state
dict, ``owner`` finds the model of a graph, ``planned_config`` and ``planned_reads`` hold a graph against the plan,
``status`` notes what compilation did, and ``optimizer_check`` checks optimizers. (Loading a model by its name on the
command line is ``models/``.)
"""
