"""The ``attnres`` command; torch is imported when a verb runs, so that ``--help`` is instant."""
