"""The test suite; a package so that tests can import their references and models."""
