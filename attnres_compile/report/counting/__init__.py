"""What executing a model's graphs without data counts: FLOPs, bytes kept for the backward, launches, traffic."""
