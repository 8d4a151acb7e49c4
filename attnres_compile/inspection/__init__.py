"""What a rewrite does to a model, for people. Read in the order in which it is made: ``facts`` of a model, repeated
layers folded into one (``fold``), and both as ``text`` or as ``pictures`` and a page.
"""
