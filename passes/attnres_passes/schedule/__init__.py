"""Rewritten to scheduled: ``schedule.py`` puts reads into the groups that ``group_reads.py`` finds cheapest.

``fuse.py`` then takes the neighbours of each read into its kernel; it and later passes look at scheduled nodes through
``scheduled_nodes.py``.
"""
