"""``python -m attnres_compile`` is the ``attnres`` command."""

import sys

from attnres_compile.cli.main import main

sys.exit(main())
