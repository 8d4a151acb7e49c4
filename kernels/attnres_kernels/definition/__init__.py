"""What is computed, in plain torch, and what it costs: no kernel, no graph.

Read ``naive`` first, the paper's equations; then ``read_parts`` and ``scheduled``, reads taken apart and what they
share; then ``cost``, what each of them moves. The README here derives the gradients.
"""
