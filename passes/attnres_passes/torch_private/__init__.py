"""Private names of torch that passes and backend use: one subject per file, each covered by the test file of its name.

Checked with torch 2.11, 2.13 and 2.15. Private names elsewhere: ``attnres_compile/pipelines/torch_stage.py``
(pipelining), ``attnres_kernels/launch/tuning.py`` (Inductor's autotuners), attributes of modules such as ``_orig_mod``,
and ``_pytree`` and ``_python_dispatch`` of ``torch.utils``, which are how torch is extended.
"""
