"""What passes share and no pass is: plan and options, who a node is, how a graph reads, what its levels allow.

Begin with ``plan`` (what is decided), ``read_id`` and ``annotations`` (what a node is for), ``levels`` (the rules).
"""
