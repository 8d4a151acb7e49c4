"""The overhead table of a model."""
