"""What all passes share: plan and options, what a node is for, how a graph is printed, what its levels allow.

Begin with ``plan`` (what is decided), ``read_id`` (which read), ``annotations`` (what a node is for) and ``levels``
(the rules).
"""
