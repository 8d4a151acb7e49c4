"""The arms: generated kernels in each schedule, torch code, and other people's kernels, all doing the same work."""
