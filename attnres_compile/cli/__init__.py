"""The ``attnres`` command, from ``main``; torch is imported when a verb runs, so that ``--help`` is instant."""
