"""``AttnResCallback``: a prepared model under the Trainer of transformers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from torch import nn
from torch.optim.optimizer import Optimizer

from attnres_compile.api.optimizers import param_groups
from attnres_compile.api.save_load import save
from attnres_compile.model import parameters, plan_tensor
from attnres_compile.model.errors import OptimizerError

_CHECKPOINT = re.compile(r"checkpoint-\d+")
_WRITTEN_LAST = "trainer_state.json"


class AttnResCallback:
    """A ``TrainerCallback`` for a prepared model.

    It compiles the model, which ``TrainingArguments(torch_compile_backend=..)`` cannot: accelerate takes no backend but
    those in a list of its own. It checks that the optimizer holds the AttnRes parameters undecayed. It writes what
    ``attnres_compile.save`` writes into every checkpoint, beside the weights that the Trainer saves and restores with
    all others.

        attnres_compile.prepare(model, kwargs=dict(input_ids=ids), num_blocks=8)
        callback = AttnResCallback()
        trainer = Trainer(
            model, arguments, callbacks=[callback], optimizers=callback.optimizers(model, arguments), ..
        )
        trainer.train(resume_from_checkpoint=callback.last_checkpoint(arguments.output_dir))

    Args:
        options: of the backend, as ``model.compile(backend="attnres", options=..)`` takes them.

    Raises:
        ImportError: transformers is not installed.
        NotPreparedError: by the Trainer, when it is made or trains, of a model that is not prepared.
        OptimizerError: by ``train``, of an optimizer that decays the AttnRes parameters or does not hold them.
    """

    def __new__(cls, options: Mapping[str, Any] | None = None) -> Self:
        """Of a class that is derived from transformers' own, which is imported here and not with this package."""
        from transformers import TrainerCallback

        made: Self = object.__new__(cls if issubclass(cls, TrainerCallback) else _joined(cls, TrainerCallback))
        return made

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        self.options = dict(options or {})

    def optimizers(self, model: nn.Module, arguments: Any) -> tuple[Optimizer, None]:
        """For ``Trainer(.., optimizers=)``: the optimizer that the arguments name, over ``param_groups``.

        Args:
            model: prepared.
            arguments: TrainingArguments; ``optim``, ``learning_rate``, ``weight_decay`` and the betas count.

        Returns:
            The optimizer, and None for the schedule, which the Trainer makes.

        Raises:
            NotPreparedError.
            OptimizerError: the optimizer that ``optim`` names takes more than groups of parameters.
        """
        from transformers import Trainer

        groups = param_groups(model, lr=arguments.learning_rate, weight_decay=arguments.weight_decay)
        cls, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
        if not isinstance(cls, type) or not issubclass(cls, Optimizer) or "params" in options:
            raise OptimizerError(
                f"optim={str(arguments.optim)!r} makes its own groups of parameters; choose one that takes groups "
                "('adamw_torch'), or make it yourself with attnres_compile.param_groups and give optimizers=."
            )
        return cls(groups, **options), None

    def last_checkpoint(self, folder: str | Path) -> str | None:
        """For ``train(resume_from_checkpoint=)``: the newest checkpoint that was written to its end.

        The Trainer writes a checkpoint file by file into its place. ``resume_from_checkpoint=True`` takes the newest
        folder, which of a run that was killed while it saved is half a checkpoint, and an error.

        Args:
            folder: ``output_dir`` of the arguments.

        Returns:
            Its path; None if there is none, from which the Trainer begins anew.
        """
        found = [path for path in Path(folder).glob("checkpoint-*") if _CHECKPOINT.fullmatch(path.name)]
        newest_first = sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
        return next((str(path) for path in newest_first if _is_whole(path)), None)

    def on_init_end(self, args: Any, state: Any, control: Any, *, model: Any = None, **_: Any) -> None:
        """Compile the model, before the Trainer wraps it."""
        if model is not None:
            self._compile(model)

    def on_train_begin(
        self, args: Any, state: Any, control: Any, *, model: Any = None, optimizer: Any = None, **_: Any
    ) -> None:
        """Look at what is about to be trained: ``model_init`` may have made another model since."""
        self._compile(model)
        added = parameters.require_parameters(model)
        # Weights of a checkpoint have come in by now.
        plan_tensor.check_plan_tensor(added)
        _check_undecayed(optimizer, added)

    def on_save(self, args: Any, state: Any, control: Any, *, model: Any = None, **_: Any) -> None:
        """Every rank writes, since sharded parameters are gathered."""
        save(model, Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def _compile(self, model: nn.Module) -> None:
        prepared = parameters.require_prepared(model)
        if prepared._compiled_call_impl is None:
            prepared.compile(backend="attnres", options=self.options)


def _is_whole(checkpoint: Path) -> bool:
    """By the file that the Trainer writes behind all others, and without which it does not resume."""
    try:
        json.loads((checkpoint / _WRITTEN_LAST).read_bytes())
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return False
    return True


def _joined(cls: Any, callback: Any) -> Any:
    return type(cls.__name__, (cls, callback), {"__module__": cls.__module__, "__doc__": cls.__doc__})


def _check_undecayed(optimizer: Any, added: nn.Module) -> None:
    """Raises OptimizerError. Optimizers that hide their groups are asked at their first step, as all are."""
    ours = {id(parameter) for parameter in added.parameters() if parameter.requires_grad}
    for group in getattr(optimizer, "param_groups", ()):
        decayed = sum(id(parameter) in ours for parameter in group["params"]) if group.get("weight_decay") else 0
        if decayed:
            raise OptimizerError(
                f"the optimizer decays {decayed} of the {len(ours)} AttnRes parameters by {group['weight_decay']}: the "
                "Trainer decides by names, and knows no pseudo-queries. Give it optimizers=callback.optimizers(model, "
                "arguments), or an optimizer over attnres_compile.param_groups."
            )
