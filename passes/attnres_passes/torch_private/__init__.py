"""Every private name of torch that is used, one subject a file, each covered by the test file of its name.

Checked with torch 2.11 and 2.13. (``_pytree`` and ``_python_dispatch`` of ``torch.utils`` are used elsewhere too: they
are how torch is extended.)
"""
