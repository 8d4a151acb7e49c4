"""What a user calls, one file per subject: prepare, verify, explain, status, save_load, optimizers.

Begin with ``prepare``. Importing them loads no page and no picture: an ``Explanation`` loads one in the method that
makes it. ``saved_directory`` and ``atomic_files`` are the files of ``save_load``.
"""
