"""What a user does with the backend: prepared and not, training and inference, sizes, modes, copies, wrappers."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from torch import nn

import attnres_compile as ac
from attnres_compile.model.status import note_part
from attnres_passes.torch_private.version import torch_version
from tests.end_to_end.models import LAYERS, WIDTH, PreNorm, randomize, tokens

EAGER = {"inner": "eager"}
ADDED = 2 * WIDTH * LAYERS


def compiled(model: nn.Module, **options: object) -> nn.Module:
    model.compile(backend="attnres", options={**EAGER, **options})
    return model


def by_hand(model: PreNorm, ids: torch.Tensor) -> torch.Tensor:
    """Full AttnRes of PreNorm: every read a softmax over the embedding and all outputs so far."""
    sources = [model.embedding(ids)]
    reads = iter(model.attnres.streams[0].reads)

    def read() -> torch.Tensor:
        if len(sources) == 1:
            return sources[0]
        parameters = next(reads)
        values = torch.stack(sources)
        keys = values * (values.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * parameters.key_norm.weight
        weights = (keys @ parameters.query).softmax(0)
        return (weights.unsqueeze(-1) * values).sum(0)

    for block in model.blocks:
        sources.append(block.mlp(block.norm(read())))
    return model.head(model.norm(read()))


@pytest.mark.parametrize("how", ["in place", "wrapped", "function"])
def test_ways_to_compile_a_prepared_model(how: str) -> None:
    model, ids = PreNorm(), tokens()
    ac.prepare(model, (ids,), block_size=1)
    randomize(model)
    expected = by_hand(model, ids)
    if how == "in place":
        call = compiled(model)
    elif how == "wrapped":
        call = torch.compile(model, backend="attnres", options=EAGER)
    else:
        call = torch.compile(lambda ids: model(ids), backend="attnres", options=EAGER)
    torch.testing.assert_close(call(ids), expected)


def test_prepared_model_inside_another_module() -> None:
    class Outer(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.inner(ids).log_softmax(-1)

    model, ids = PreNorm(), tokens()
    ac.prepare(model, (ids,), block_size=1)
    randomize(model)
    expected = by_hand(model, ids).log_softmax(-1)
    torch.testing.assert_close(compiled(Outer(model))(ids), expected)


def test_parameters_are_the_models_own() -> None:
    model, ids = PreNorm(), tokens()
    before = list(model.state_dict())
    plan = ac.prepare(model, (ids,), num_blocks=2)
    added = [name for name in model.state_dict() if name not in before]
    assert added == [
        "attnres.plan_tensor",
        *(f"attnres.streams.0.reads.{k}.{name}" for k in range(LAYERS) for name in ("query", "key_norm.weight")),
    ]
    assert all(parameter.shape == (WIDTH,) for parameter in model.attnres.parameters())
    assert all(not read.query.any() and read.key_norm.weight.eq(1).all() for read in model.attnres.streams[0].reads)
    assert [read.num_sources for read in plan.streams[0].reads] == [1, 2, 2, 3]
    compiled(model)(ids).sum().backward()
    assert all(parameter.grad is not None for parameter in model.attnres.parameters())
    ac.unprepare(model)
    assert list(model.state_dict()) == before


def test_without_prepare_the_first_call_registers_and_warns_once() -> None:
    model, ids = compiled(PreNorm()), tokens()
    with pytest.warns(UserWarning, match="attnres: PreNorm was not prepared.*optimizer"):
        model(ids)
    assert sum(parameter.numel() for parameter in model.attnres.parameters()) == ADDED
    queries = [read.query for read in model.attnres.streams[0].reads]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="attnres")
        model(tokens(length=6))
        model(tokens(length=7)).sum().backward()
        with torch.no_grad():
            model.eval()(ids)
    assert [read.query for read in model.attnres.streams[0].reads] == queries
    assert all(query.grad is not None for query in queries)


@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
def test_lengths_do_not_recompile_one_by_one(inner: str) -> None:
    model, ids = PreNorm(), tokens()
    ac.prepare(model, (ids,), block_size=1)
    randomize(model)
    compiled(model, inner=inner)
    for length in (5, 6, 7, 11, 3, 12):
        ids = tokens(length=length)
        torch.testing.assert_close(model(ids), by_hand(model, ids))
    assert ac.status(model).graphs == 2  # one for the first length, one for all others


def test_capture_does_not_make_the_first_compilation_dynamic() -> None:
    model = PreNorm()
    ac.prepare(model, (tokens(length=5),))
    compiled(model)
    for _ in range(2):
        model(tokens(length=9))
    assert ac.status(model).graphs == 1
    model(tokens(length=10))
    assert ac.status(model).graphs == 2


def test_copies_do_not_share_compiled_graphs() -> None:
    """Dynamo reuses a graph for another module of one structure; the parameters of the reads differ."""
    model, ids = PreNorm(), tokens()
    ac.prepare(model, (ids,), block_size=1)
    other = copy.deepcopy(model)
    randomize(model)
    randomize(other)
    for each in (compiled(model), compiled(other)):
        torch.testing.assert_close(each(ids), by_hand(each, ids))
    torch.testing.assert_close(model(ids), by_hand(model, ids))


@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
def test_modes_of_running(inner: str) -> None:
    model, ids = PreNorm(dropout=0.5), tokens()
    ac.prepare(model, (ids,), block_size=1)
    randomize(model)
    compiled(model.eval(), inner=inner)
    expected = by_hand(model, ids)
    for context in (torch.enable_grad(), torch.no_grad(), torch.inference_mode()):
        with context:
            torch.testing.assert_close(model(ids), expected)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(ids)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, rtol=0.05, atol=0.05)
    model.train()
    model(ids).sum().backward()
    assert all(read.query.grad is not None for read in model.attnres.streams[0].reads)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_parameters_follow_the_model(dtype: torch.dtype) -> None:
    model, ids = PreNorm(), tokens()
    ac.prepare(model, (ids,), block_size=1)
    randomize(model)
    compiled(model)(ids)
    model.to(dtype)
    assert {parameter.dtype for parameter in model.attnres.parameters()} == {dtype}
    if torch_version() < (2, 12):  # has no guards on the dtype of a module's parameters
        with pytest.raises(ac.AttnResError, match=r"call torch.compiler.reset\(\) first"):
            model(ids)
        torch.compiler.reset()
    tolerance = {"rtol": 0.1, "atol": 0.1} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(model(ids), by_hand(model, ids), **tolerance)


def test_first_call_may_be_under_activation_checkpointing() -> None:
    """Which takes what compiling saves for a backward pass for tensors of the model."""
    model, ids = PreNorm(), tokens()
    ac.prepare(model, (ids,), block_size=1)
    torch.utils.checkpoint.checkpoint(compiled(model), ids, use_reentrant=False).sum().backward()
    assert all(read.query.grad is not None for read in model.attnres.streams[0].reads)


def test_training_reaches_the_same_point_as_by_hand() -> None:
    model, ids = PreNorm(), tokens()
    ac.prepare(model, (ids,), block_size=1)
    twin = copy.deepcopy(model)
    compiled(model, inner="aot_eager")
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.3) for each in (model, twin)]
    for _ in range(5):
        for optimizer, call in zip(optimizers, (model, lambda ids: by_hand(twin, ids)), strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(call(ids).flatten(0, 1), ids.flatten()).backward()
            optimizer.step()
    for (name, left), right in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(left, right, msg=name)
    assert all(read.query.abs().max() > 0 for read in model.attnres.streams[0].reads)


def test_inductor_and_its_modes() -> None:
    model, ids = PreNorm(), tokens()
    ac.prepare(model, (ids,), block_size=1)
    randomize(model)
    model.compile(backend="attnres", mode="default")
    torch.testing.assert_close(model(ids), by_hand(model, ids))


def test_status_tells_what_was_done() -> None:
    model, ids = PreNorm(), tokens()
    assert ac.status(model).state == "untouched"
    ac.prepare(model, (ids,))
    assert ac.status(model).state == "prepared"
    compiled(model)(ids)
    status = ac.status(model)
    assert (status.state, status.reads, status.graphs, status.recompiles) == ("rewritten", LAYERS, 1, 0)
    assert str(status) == (
        f"rewritten: {LAYERS} reads, 1 graph compiled, 0 recompiles (7 left before Dynamo's limit of 8); "
        "calls: 1 rewritten"
    )


@pytest.mark.parametrize("first", ["", "import attnres_compile; "])
def test_backend_is_found_by_name(first: str) -> None:
    """By its entry point, whether or not the package was imported before."""
    code = first + (
        "import torch; from torch import nn\n"
        "assert 'attnres' in torch._dynamo.list_backends()\n"
        "model = nn.Linear(2, 2)\n"
        "model.compile(backend='attnres', options={'on_decline': 'ignore', 'inner': 'eager'})\n"
        "print(tuple(model(torch.ones(1, 2)).shape))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "(1, 2)", result.stderr


def test_one_line_per_graph_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    model, ids = PreNorm(), tokens()
    ac.prepare(model, (ids,), num_blocks=3)
    with caplog.at_level("INFO", logger="attnres_compile"):
        compiled(model)(ids)
    lines = [record.getMessage() for record in caplog.records if record.name == "attnres_compile"]
    assert lines == [
        "attnres: 1 stream, 3 reads rewritten (blocks: 3 writes in 3 blocks), 0 declined, schedule=auto, inner=eager, "
        "reads on torch (a stream is on cpu)"
    ]


def test_dump_writes_a_numbered_file_per_stage(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNRES_DUMP", str(tmp_path))
    model, ids = PreNorm(), tokens()
    ac.prepare(model, (ids,))
    compiled(model)(ids)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert [name.split("_", 2)[1:] for name in names] == [
        ["00", "captured.py"],
        ["01", "plan.txt"],
        ["02", "rewritten.py"],
        ["03", "scheduled.py"],
        ["04", "lowered.py"],
        ["05", "schedule.txt"],
    ]
    assert "attnres.depth_attention" in (tmp_path / names[2]).read_text()
    assert "attnres.depth_attention" not in (tmp_path / names[3]).read_text()


def test_cuda_graphs_need_not_copy_the_parameters_of_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """All parameters, the model's and those of the reads, are static inputs for Inductor; the ids are not."""
    from torch._inductor import compile_fx

    seen: list[tuple[int, int]] = []
    honest = compile_fx.fx_codegen_and_compile

    def look(gm: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append((len(inputs), len(kwargs["static_input_idxs"])))
        return honest(gm, inputs, *args, **kwargs)

    monkeypatch.setattr(compile_fx, "fx_codegen_and_compile", look)
    model, ids = PreNorm().eval(), tokens()
    ac.prepare(model, (ids,))
    model.compile(backend="attnres")
    with torch.no_grad(), torch._inductor.utils.fresh_inductor_cache():
        model(ids)
    parameters = len(list(model.parameters()))
    assert seen == [(parameters + 1, parameters)]


def in_ddp(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(compiled(model))


def in_fsdp2(model: nn.Module) -> nn.Module:
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    return compiled(torch.distributed.fsdp.fully_shard(model, mesh=mesh))


@pytest.mark.processes
@pytest.mark.parametrize("wrapped", [in_ddp, in_fsdp2])
def test_data_parallel(wrapped: Callable[[nn.Module], nn.Module], tmp_path) -> None:
    """The gradients of the added parameters are reduced like any other; so are sharded parameters looked up."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model, ids = PreNorm().double(), tokens()
        ac.prepare(model, (ids,), block_size=1)
        randomize(model)
        twin = copy.deepcopy(model)
        by_hand(twin, ids).square().sum().backward()
        wrapped(model)(ids).square().sum().backward()
        for (name, left), right in zip(model.named_parameters(), twin.parameters(), strict=True):
            grad = left.grad.full_tensor() if hasattr(left.grad, "full_tensor") else left.grad
            torch.testing.assert_close(grad, right.grad, msg=lambda text, name=name: f"{name}: {text}")
        assert ac.status(model).state == "rewritten"
    finally:
        torch.distributed.destroy_process_group()


def test_status_counts_the_reads_of_a_graph_that_others_are_compiled_beside() -> None:
    """Dynamo compiles the Python of a checkpoint's recomputation, say, which holds no read, after the model."""
    model, ids = compiled(PreNorm()), tokens()
    ac.prepare(model, (ids,), block_size=1)
    model(ids)
    before = ac.status(model)
    note_part(model, before.plan, ())
    assert (ac.status(model).reads, ac.status(model).graphs) == (before.reads, before.graphs) == (LAYERS, 1)
