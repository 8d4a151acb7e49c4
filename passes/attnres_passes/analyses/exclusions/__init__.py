"""Chains of additions that are no residual stream, by where they stand and not by how they are read.

``sublayers.py`` finds those inside one sublayer of another stream, ``recurrence.py`` those that step through time,
``layout.py`` those with features on another axis, ``interruptions.py`` what cuts a sum, ``reversible.py`` and
``depth_attention.py`` what models have in place of a stream.
"""
