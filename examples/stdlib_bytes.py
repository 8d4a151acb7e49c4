"""Real text that every machine has: the source of the Python standard library, as byte-level tokens."""

import sysconfig
from pathlib import Path

import torch

FILES = ("argparse.py", "ast.py", "dataclasses.py", "inspect.py", "statistics.py", "textwrap.py", "typing.py")


def standard_library_bytes() -> torch.Tensor:
    """All bytes of FILES, int64 ``[about 600,000]``, values below 256."""
    directory = Path(sysconfig.get_path("stdlib"))
    text = b"".join((directory / name).read_bytes() for name in FILES)
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).long()


def batches(tokens: torch.Tensor, rows: int, length: int, seed: int = 0):
    """Endless random windows of ``tokens``, int64 ``[rows, length]``."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(0, len(tokens) - length, (rows,), generator=generator)
        yield torch.stack([tokens[start : start + length] for start in starts.tolist()])
