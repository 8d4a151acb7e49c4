"""Meeting points with other libraries: checkpoints of transformers, its Trainer, and weights for other projects.

Each library is imported where it is used. Nothing of them is patched.
"""
