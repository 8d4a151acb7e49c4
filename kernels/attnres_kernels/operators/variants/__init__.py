"""Operators of reads by mechanisms that are not the paper's: the read in the rewritten graph, and what is recorded."""
