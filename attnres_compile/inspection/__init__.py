"""What a rewrite does to a model, for people. Read in the order in which it is made: ``facts`` of a model, repeated
layers ``fold``-ed into one, and both as ``text`` or as ``pictures`` and a page.
"""
