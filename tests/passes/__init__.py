"""Tests of attnres_passes: every analysis, the rewrite, the lowering, and the texts a person reads."""
