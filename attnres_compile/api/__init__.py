"""What a user calls, one file per subject: prepare, verify, explain, status, save_load, optimizers.

Begin with ``prepare``. ``saved_directory`` and ``atomic_files`` are what ``save_load`` reads and writes. Importing them loads no page and no picture: an ``Explanation`` loads one in the method that
makes it.
"""
