"""Chains of additions that are no residual stream, by where they stand and not by how they are read.

``sublayers.py`` finds those inside one sublayer of another stream, ``recurrence.py`` those that step through time.
"""
