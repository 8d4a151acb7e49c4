"""``python -m kernels.benchmarks``."""

import sys

from .command_line import main

sys.exit(main())
