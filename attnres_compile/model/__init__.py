"""What a prepared model carries: its parameters and plan, notes on what was compiled, and the errors. (Loading a model by its
name on the command line is ``models/``.)

Begin with ``parameters``; ``owner`` finds the model of a graph, ``status`` notes what compilation did,
``optimizer_check`` checks optimizers, ``planned_config`` and ``planned_reads`` hold a graph against the plan.
"""
