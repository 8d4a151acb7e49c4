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
    """How to build a model and its example inputs.

    batch: rows of every example input.
    seq: tokens per row; None takes ``default_seq``, or as many as the model has positions if those are fewer.
    dtype: one of DTYPES, for the parameters and the floating inputs.
    device: any device string of torch.
    seed: of the random weights and inputs; the caller's generators are left alone.
    weightless: models of presets and configurations are built on the meta device, with inputs there: shapes and no
        data, whatever their size. A factory builds what it builds.
    capture_seq: tokens per row of the guessed inputs where ``seq`` is more: for models that are captured without being
        run and whose graph grows with the number of tokens. ``LoadedModel.asked_seq`` then holds ``seq``.

    Raises LoadOptionError.
    """

    batch: int = 1
    seq: int | None = None
    dtype: str = "float32"
    device: str = "cpu"
    seed: int = 0
    default_seq: int = DEFAULT_SEQ
    weightless: bool = False
    capture_seq: int | None = None

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
