"""What can be known of our kernels and of other people's without a GPU: their launches and the bytes those move.

python -m kernels.benchmarks static --wheels DIR
"""
