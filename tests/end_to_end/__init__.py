"""Whole models, from the public functions and the backend down to gradients."""
