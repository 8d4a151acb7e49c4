"""How values scale with the residual stream, operator by operator.

``degree.py`` says what a degree is and what a rule is given; the rules are in files by family; ``rules.py`` applies
them. ``feature_axis.py`` follows the axis of the features in a similar way.
"""
