"""What all passes share: plan and options, what a node is for, the text of a graph, the rules of its levels.

Begin with ``plan`` (what is decided), ``read_id`` (which read), ``annotations`` (what a node is for) and ``levels``
(the rules).
"""
