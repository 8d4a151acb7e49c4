"""What the residual path moves through memory: ``residual_path`` takes it out of a graph, ``traffic`` counts it."""
