"""One rank: runs the cases one after the other and writes what it found."""

from __future__ import annotations

import copy
import datetime
import json
import os
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import distributed_c10d
from torch.nn.parallel import DistributedDataParallel

import attnres_compile
from attnres_compile.pipelines.pipeline import pipeline
from attnres_compile.pipelines.rank import Pipeline
from attnres_kernels.errors import AttnResError
from tests.attnres_compile.pipelines.cases import ALONE, CASES, Case
from tests.attnres_compile.pipelines.models import MODELS, Toy, data, loss_of

ROWS = 8
RATE = 0.1
TIMEOUT = datetime.timedelta(seconds=90)
PATIENCE = datetime.timedelta(seconds=3)
"""The timeout while one rank hangs."""


def main(rank: int, size: int, folder: Path, only: str = "") -> None:
    dist.init_process_group("gloo", f"file://{folder / 'rendezvous'}", TIMEOUT, size, rank)
    found = {}
    if only in ALONE:
        (folder / f"{rank}.json").write_text(json.dumps({str(ALONE[only]): run(ALONE[only])}))
        os._exit(0)  # the process group may have lost a member
    for case in CASES[size]:
        if any(part in str(case) for part in only.split(",")):
            found[str(case)] = run(case)
            (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def hang() -> NoReturn:
    """Until the other rank must have given up."""
    time.sleep(4 * PATIENCE.total_seconds())
    os._exit(3)


class CustomError(Exception):
    """Not one of ours, and raised on one rank alone."""


def refuse(*args: Any, **kwargs: Any) -> Any:
    raise CustomError("no such forward")


def run(case: Case) -> dict[str, Any]:
    try:
        return trained(case)
    except (AttnResError, CustomError) as error:
        if not case.raises:
            raise
        return {"raised": f"{type(error).__name__}: {error}"}


def trained(case: Case) -> dict[str, Any]:
    """Train the pipeline and a single process on the same data, and compare all along."""
    model, reference = prepared(case)
    tokens, _ = data(0, ROWS - 1 if case.fault == "uneven example" else ROWS)
    if case.fault == "bad forward" and dist.get_rank() == 1:
        model.state_dict = refuse  # type: ignore[method-assign]
    groups = replica_groups() if case.fault == "replicas" else None
    pipe = pipeline(
        model,
        group=groups and groups[0],
        wrap=(lambda module: DistributedDataParallel(module, process_group=groups[1])) if groups else None,
        kwargs=MODELS[case.model].call(tokens),
        virtual=case.virtual,
        schedule=case.schedule,
        microbatches=case.microbatches,
        loss_fn=loss_of,
        transfer=case.transfer,
        cut_points=case.cut_points,
        device="cpu",
        inner=case.inner,
        **({"num_blocks": 3} if case.fault == "contradiction" else {}),
    )
    del model
    if case.from_meta and case.fault != "unset":
        pipe.load_state_dict(dict(reference.state_dict()) | dict(reference.named_buffers()))
    sent = counted(pipe)
    sabotage(case.sabotage or case.fault, pipe)
    result: dict[str, Any] = {"loss": 0.0, "gradient": 0.0, "parameter": 0.0, "output": 0.0}
    optimizers = [torch.optim.SGD(part.parameters(), RATE) for part in (pipe, reference)]
    for step in range(case.steps):
        compare_step(case, pipe, reference, step, result)
        result.setdefault("sent", {f"{kind} {chunk}": count for (kind, chunk), count in sent.items()})
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if case.evaluates or case.fault == "evaluates":
            compare_evaluation(case, pipe, reference, step, result)
        note(result, "parameter", pipe, {name: value.detach() for name, value in reference.named_parameters()})
    result["names"] = [name for name, _ in pipe.named_parameters()]
    result["plan"], result["cuts"] = pipe.plan.digest, pipe.plan.cuts
    result["peak"] = pipe.store.peak
    return result


def replica_groups() -> tuple[dist.ProcessGroup, dist.ProcessGroup]:
    """The ranks of this rank's pipeline, and those with the same chunks in all pipelines."""
    pipelines = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    chunks = [dist.new_group([0, 2]), dist.new_group([1, 3])]
    return pipelines[dist.get_rank() // 2], chunks[dist.get_rank() % 2]


def prepared(case: Case) -> tuple[nn.Module, nn.Module]:
    """The model for the pipeline, and a copy for the single process."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    odd = {"tied": {"tied": True}, "declined": {"normed": False}}.get(case.fault)
    made = MODELS[case.model].make(case.sublayers) if odd is None else Toy(case.sublayers, **odd)
    model = made.double().eval() if case.evaluates else made.double()
    micro, _ = data(0, ROWS // case.microbatches)
    if case.fault == "declined":
        return model, model
    blocks = case.block_size + (1 if case.fault == "different plans" and dist.get_rank() else 0)
    attnres_compile.prepare(model, kwargs=MODELS[case.model].call(micro), block_size=blocks)
    added = model.get_submodule("attnres")
    if not case.zero_queries:
        with torch.no_grad():
            for parameter in added.parameters():
                parameter.add_(torch.randn_like(parameter) / 3)
    if case.frozen:
        model.get_submodule("embedding").requires_grad_(False)
    reference = copy.deepcopy(model)
    return (model.to("meta") if case.from_meta else model), reference


def compare_step(case: Case, pipe: Pipeline, reference: nn.Module, step: int, result: dict[str, Any]) -> None:
    replicas = [data(step, ROWS)]
    if case.fault == "replicas":
        replicas.append(data(step + 20, ROWS))
    tokens, target = replicas[dist.get_rank() // 2] if len(replicas) > 1 else replicas[0]
    losses: list[Tensor] = []
    given = tokens[:-1] if case.fault == "uneven batch" and dist.get_rank() == 0 else tokens
    output = pipe.step(
        **MODELS[case.model].call(given), target=None if case.fault == "no target" else target, losses=losses
    )
    logits = reference_logits(case, reference, tokens)
    loss = loss_of(logits, target)
    for other_tokens, other_target in replicas:
        (loss_of(reference_logits(case, reference, other_tokens), other_target) / len(replicas)).backward()
    if pipe.is_last:
        assert len(losses) == case.microbatches
        result["loss"] = max(result["loss"], abs(float(torch.stack(losses).detach().mean() - loss.detach())))
        result["output"] = max(result["output"], float((output - logits).detach().abs().max()))
    assert not pipe.store.values
    assert not pipe.store.gradients
    gradients = {name: parameter.grad for name, parameter in reference.named_parameters()}
    note(result, "gradient", pipe, gradients, of_gradient=True)


def compare_evaluation(case: Case, pipe: Pipeline, reference: nn.Module, step: int, result: dict[str, Any]) -> None:
    tokens, target = data(50 + step, ROWS)
    with_target = {"target": target} if step % 2 else {}
    output = pipe.evaluate(**MODELS[case.model].call(tokens), **with_target)
    if pipe.is_last:
        assert not output.requires_grad
        error = (output - reference_logits(case, reference, tokens)).detach().abs().max()
        result["output"] = max(result["output"], float(error))


def reference_logits(case: Case, reference: nn.Module, tokens: Tensor) -> Tensor:
    reads = reference.get_submodule("attnres.streams.0.reads")
    pairs = [(read.query, read.key_norm.weight) for read in reads]  # type: ignore[union-attr]
    return MODELS[case.model].logits(reference, tokens, pairs, case.block_size)


def note(
    result: dict[str, Any], name: str, pipe: Pipeline, expected: dict[str, Any], of_gradient: bool = False
) -> None:
    """The largest difference of any parameter, relative to the largest element."""
    for path, parameter in pipe.named_parameters():
        value = parameter.grad if of_gradient else parameter.detach()
        if value is None and not parameter.requires_grad:
            continue
        assert value is not None, path
        largest = expected[path].abs().max().clamp_min(1e-12)
        result[name] = max(result[name], float((value - expected[path]).abs().max() / largest))


def counted(pipe: Pipeline) -> dict[tuple[str, int], int]:
    """Bytes handed to the send calls of each chunk, forward and backward; filled while the pipeline runs."""
    sent: dict[tuple[str, int], int] = defaultdict(int)
    for stage in pipe.stages:
        for kind in ("fwd", "bwd"):
            name = f"get_{kind}_send_ops"
            made = getattr(stage, name)

            def send(microbatch: int, made: Any = made, place: tuple[str, int] = (kind, stage.chunk.index)) -> Any:
                operations = made(microbatch)
                sent[place] += sum(op.tensor.numel() * op.tensor.element_size() for op in operations)
                return operations

            setattr(stage, name, send)
    return sent


def sabotage(fault: str, pipe: Pipeline) -> None:
    """Put a fault into the store of this rank."""
    store = pipe.store
    add, leaf = store.add_gradient, store.leaf

    def drop_one(microbatch: int, block: int, gradient: Tensor) -> None:
        add(microbatch, block, gradient * 0 if (microbatch, block) == (1, 1) else gradient)

    faults: dict[str, tuple[str, Any]] = {
        "drop": ("add_gradient", lambda microbatch, block, gradient: None),
        "double": ("add_gradient", lambda microbatch, block, gradient: add(microbatch, block, 2 * gradient)),
        "drop_one": ("add_gradient", drop_one),
        "wrong_microbatch": ("leaf", lambda microbatch, block, grad: leaf(0, block, grad)),
    }
    if fault in faults:
        setattr(store, *faults[fault])
    if fault == "wrong_microbatch":
        # The first micro-batch must stay for the others to be given it.
        store.drop = lambda microbatch, block: store.values.pop((microbatch, block)) if microbatch else None
        store.check_empty = store.clear
    if fault == "crash" and dist.get_rank() == 1:
        setattr(pipe.stages[0], "forward_one_chunk", lambda *args, **kwargs: os._exit(3))  # noqa: B010
    if fault == "hang":
        distributed_c10d._set_pg_timeout(PATIENCE, dist.group.WORLD)
        if dist.get_rank() == 1:
            setattr(pipe.stages[0], "forward_one_chunk", lambda *args, **kwargs: hang())  # noqa: B010
    if fault == "stale":
        first: dict[tuple[int, int], Tensor] = {}
        put = store.put

        def keep_first(microbatch: int, block: int, value: Tensor) -> None:
            put(microbatch, block, first.setdefault((microbatch, block), value.detach().clone()))

        store.put = keep_first  # type: ignore[method-assign]
