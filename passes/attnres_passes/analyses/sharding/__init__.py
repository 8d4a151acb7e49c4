"""Which ranks hold which tokens of a residual stream."""
