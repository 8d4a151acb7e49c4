"""Rewritten -> scheduled: ``schedule`` emits what ``group_reads`` decided, for the provider that ``provider`` chose.

``fuse`` lets reads take in their neighbours; ``scheduled_nodes`` is how later passes read the nodes.
"""
