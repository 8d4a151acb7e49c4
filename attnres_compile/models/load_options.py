"""Shape, number format and place of the example inputs: what ``--batch --seq --dtype --device`` set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from attnres_compile.models.errors import LoadOptionError

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16", "float64")
DEFAULT_SEQ = 128


@dataclass(frozen=True)
class LoadOptions:
    """How to build a model and its example inputs. Raises LoadOptionError for a value that cannot be."""

    batch: int = 1
    seq: int | None = None
    """Tokens per row; None takes ``default_seq``, or as many as the model has positions if those are fewer."""
    dtype: str = "float32"
    """Of the parameters and the floating inputs, one of DTYPES."""
    device: str = "cpu"
    seed: int = 0
    """Of the random weights and inputs; the caller's generators are left alone."""
    default_seq: int = DEFAULT_SEQ
    weightless: bool = False
    """Whether models of presets and configurations are built on the meta device: shapes and no data, of any size."""
    capture_seq: int | None = None
    """Tokens per row of the inputs where ``seq`` is more, for models whose graph grows with the number of tokens."""

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise LoadOptionError(f"batch is {self.batch}: pass at least 1")
        if self.seq is not None and self.seq < 1:
            raise LoadOptionError(f"seq is {self.seq}: pass at least 1")
        if self.capture_seq is not None and self.capture_seq < 1:
            raise LoadOptionError(f"capture_seq is {self.capture_seq}: pass at least 1")
        if self.dtype not in DTYPES:
            raise LoadOptionError(f"dtype {self.dtype!r} is not supported: pass one of {', '.join(DTYPES)}")

    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch's own."""
        import torch

        dtypes = {name: getattr(torch, name) for name in DTYPES}
        found: torch.dtype = dtypes[self.dtype]
        return found

    def torch_device(self) -> torch.device:
        """The device as torch's own. Raises LoadOptionError if torch does not know it or it is not there."""
        import torch

        try:
            device = torch.device(self.device)
        except RuntimeError as error:
            raise LoadOptionError(
                f"torch knows no device {self.device!r}: pass a device such as cpu, cuda or cuda:1"
            ) from error
        if device.type == "cuda" and not torch.cuda.is_available():
            raise LoadOptionError("no CUDA device is available on this machine: pass --device cpu")
        if device.type == "meta":
            raise LoadOptionError("a model on the meta device cannot be run: pass --device cpu or cuda")
        return device
