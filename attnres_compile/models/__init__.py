"""From what a user names, a preset, a configuration or a factory, to a module with example inputs.

Begin with ``source``. (What a prepared model carries is ``model/``.)
"""
