"""Block Attention Residuals written by hand in plain eager PyTorch: the oracle of the compiled models."""
