"""Where commands run: in a directory with factories."""

from tests.attnres_compile.conftest import in_directory  # noqa: F401  (a fixture)
