"""One warp of a compiled kernel for NVIDIA, followed through its machine code. Start with ``follow``."""
