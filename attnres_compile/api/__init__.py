"""What a user calls, one verb a file: prepare, verify, explain, status, save_load, optimizers.

Begin with ``prepare``. No file loads a page or a picture; ``explain`` does so in the methods that make one.
"""
