"""In force, or an error: no call of a prepared model runs plain in silence.

Begin with ``guard``, which puts the guard on a model; ``guarded_forward`` is what it puts there, ``causes`` says what
ran instead of the rewrite and how to mend it, and ``calls`` counts what the calls were.
"""
