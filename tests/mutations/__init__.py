"""Faults of one line, put one at a time into a copy of the code, to see that the tests of its area find each.

``faults.toml`` holds them, ``python -m tests.mutations`` runs them, and keeps a record.
"""
