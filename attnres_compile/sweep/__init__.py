"""``attnres sweep``: every model type of a library, made small, planned, verified and held against its label.

``names`` says which there are, ``making`` makes one, ``judge`` says what becomes of it, ``run`` does so for all, each
in a process of its own, and ``agreement`` compares the records with labels that were read from the models' sources.
"""
