"""A model cut into chunk modules, run one after the other in this process; and what a pipeline refuses."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import attnres_compile
from attnres_compile.model import optimizer_check
from attnres_compile.model.errors import OptimizerError
from attnres_compile.pipelines import torch_stage
from attnres_compile.pipelines.build import Chunks, CutOptions, build_chunks, leaves_by_name
from attnres_compile.pipelines.chunk_module import ChunkModule, ModelTensor, inputs_of, materialise, tensors_of
from attnres_compile.pipelines.errors import PipelineBatchError, PipelineSupportError, StageError
from attnres_compile.pipelines.microbatches import batch_of
from attnres_compile.pipelines.schedules import KINDS, check_schedule, schedule_kind
from attnres_compile.pipelines.store import BlockStore, StoreError
from attnres_passes.ir.text import graph_text
from attnres_passes.ranks.layout import StageLayout, StageOrder
from attnres_passes.ranks.transfers import OPEN
from tests.attnres_compile.pipelines.models import MODELS, Toy, data
from tests.end_to_end.borders import titan
from tests.fake_ranks import fake_mesh

TOKENS = data(0, 2)[0]


def prepared(model: nn.Module, **options: Any) -> nn.Module:
    attnres_compile.prepare(model, (TOKENS.to(next(model.parameters()).device),), **(options or {"block_size": 3}))
    with torch.no_grad():
        for parameter in model.get_submodule("attnres").parameters():
            if not parameter.is_meta:
                parameter.add_(torch.randn_like(parameter) / 3)
    return model


def toy(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return prepared(Toy(6, dropout).double())


def chunks_of(model: nn.Module, ranks: int = 3, virtual: int = 1, **how: Any) -> Chunks:
    tokens = TOKENS.to(next(model.parameters()).device)
    return build_chunks(model, (tokens,), {}, CutOptions(StageLayout(ranks, virtual), **how))


def run(modules: list[ChunkModule], tokens: Tensor) -> Any:
    """All chunks in this process: what arrives is what the one before sent, what is cached is looked up."""
    known: dict[Any, Tensor] = {}
    output: Any = ()
    for module in modules:
        plan = module._content.plan
        known.update(zip(plan.arrives, output, strict=True))
        arrives = [known[key] for key in plan.arrives]
        given = module(*arrives, cached=tuple(known[key] for key in plan.cached), **leaves_by_name((tokens,), {}))
        output = given if isinstance(given, tuple) else (given,)
    return output[0]


def modules_of(chunks: Chunks) -> list[ChunkModule]:
    return [ChunkModule(bodies) for bodies in chunks.bodies]


def logits_of(model: nn.Module) -> Tensor:
    reads = model.get_submodule("attnres.streams.0.reads")
    return MODELS["toy"].logits(model, TOKENS, [(read.query, read.key_norm.weight) for read in reads], 3)


@pytest.mark.parametrize("transfer", ["naive", "cached"])
def test_chunks_in_a_row_are_the_model(transfer: str) -> None:
    model = toy()
    chunks = chunks_of(model, 2, 2, transfer=transfer)
    torch.testing.assert_close(run(modules_of(chunks), TOKENS), logits_of(model), rtol=1e-12, atol=1e-12)


def test_examples_are_what_is_sent() -> None:
    chunks = chunks_of(toy(), 2, 2)
    assert [list(example) for example in chunks.examples] == [list(chunk.needed) for chunk in chunks.plan.chunks]
    shapes = {tuple(tensor.shape) for example in chunks.examples for tensor in example.values()}
    assert shapes == {(2, 6, 16)}
    assert all(tensor.requires_grad and tensor.is_meta for example in chunks.examples for tensor in example.values())
    assert chunks.plan.chunks[1].arrives == (0, OPEN)


def test_state_dicts_load_into_each_other() -> None:
    model = toy()
    modules = modules_of(chunks_of(model))
    parts = [module.state_dict() for module in modules]
    whole = {name: value for part in parts for name, value in part.items()}
    assert whole.keys() == model.state_dict().keys()
    plan = "attnres.plan_tensor"
    assert all(plan in part for part in parts), "each part says what its parameters mean"
    assert sum(len(part) - 1 for part in parts) == len(whole) - 1, "all else in one chunk"
    other = prepared(Toy(6).double())
    other.load_state_dict(whole)
    torch.testing.assert_close(logits_of(other), logits_of(model))
    # And the very parameters are shared with the model, not copied.
    assert {id(p) for module in modules for p in module.parameters()} == {id(p) for p in model.parameters()}


def test_only_the_first_chunk_wants_tokens() -> None:
    assert [bool(inputs_of(module)) for module in modules_of(chunks_of(toy()))] == [True, False, False]


def test_each_mode_has_its_graph() -> None:
    """Dropout is in the graph of training and not in the other."""
    model = toy(dropout=0.5)
    modules = modules_of(chunks_of(model))
    trained = run(modules, TOKENS)
    assert not torch.equal(trained, run(modules, TOKENS))
    for module in modules:
        module.eval()
    assert torch.equal(run(modules, TOKENS), run(modules, TOKENS))
    assert model.training
    torch.testing.assert_close(run(modules, TOKENS), logits_of(model.eval()), rtol=1e-12, atol=1e-12)


def test_capture_without_data() -> None:
    """A model on "meta" gives the digest of a real one, and chunks that have no value until they are loaded."""
    model = toy()
    real = chunks_of(model)
    empty = chunks_of(copy.deepcopy(model).to("meta"), device=torch.device("cpu"))
    assert empty.digest == real.digest
    modules = modules_of(empty)
    unset = [materialise(module, torch.device("cpu")) for module in modules]
    assert all(unset)
    assert not any("attnres" in name for names in unset for name in names)
    state = model.state_dict()
    with torch.no_grad():
        for module in modules:
            for name, tensor in tensors_of(module):
                tensor.copy_(state[name])
    torch.testing.assert_close(run(modules, TOKENS), logits_of(model), rtol=1e-12, atol=1e-12)


def test_digest_tells_what_is_run() -> None:
    model = toy()
    digests = {
        chunks_of(model, 3).digest,
        chunks_of(model, 2).digest,
        chunks_of(model, 3, transfer="naive").digest,
        chunks_of(model, 3, cut_points=("layers.1", "layers.2")).digest,
        chunks_of(prepared(Toy(6).double(), block_size=3, eps=1e-5), 3).digest,
    }
    assert len(digests) == 5
    assert chunks_of(toy(), 3).digest in digests


def test_several_outputs_and_no_tensor() -> None:
    class Wrapped(nn.Module):
        def __init__(self, extra: Any) -> None:
            super().__init__()
            self.toy, self.extra = Toy(6), extra

        def forward(self, tokens: Tensor) -> Any:
            logits = self.toy(tokens)
            return logits, self.extra(logits)

    chunks = chunks_of(prepared(Wrapped(lambda logits: logits.argmax(-1))))
    assert [tensor.dtype for tensor in chunks.outputs] == [torch.float32, torch.int64]
    assert [tensor.requires_grad for tensor in chunks.outputs] == [True, False]


class Checkpointed(Toy):
    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = x + checkpoint(layer, x, use_reentrant=False)
        return self.head(self.norm(x))


class CheckpointedLayers(Toy):
    """The additions are inside."""

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = checkpoint(lambda state, layer=layer: state + layer(state), x, use_reentrant=False)
        return self.head(self.norm(x))


def test_a_checkpoint_is_recomputed_once_at_most() -> None:
    with pytest.raises(PipelineSupportError, match="cannot be recomputed for inputs and weights apart"):
        chunks_of(prepared(Checkpointed(6)), splits_backward=True)


def test_eager_chunks_recompute_with_the_dropout_mask_of_the_forward() -> None:
    """A dropout of almost everything: any other mask gives other gradients than no checkpoint does."""
    grads = []
    for kind in (Toy, Checkpointed, CheckpointedLayers):
        torch.manual_seed(0)
        model = prepared(kind(6, dropout=0.5).double())
        modules = modules_of(chunks_of(model, inner="eager"))
        torch.manual_seed(1)
        run(modules, TOKENS).square().sum().backward()
        grads.append([parameter.grad for parameter in model.parameters()])
    for expected, *others in zip(*grads, strict=True):
        for found in others:
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", [Checkpointed, CheckpointedLayers])
def test_activation_checkpointing_inside_chunks(kind: type[Toy]) -> None:
    """What is under torch.utils.checkpoint stays so; it costs what it costs without, and has the same gradients."""
    torch.manual_seed(0)
    model = prepared(kind(6).double())
    reference = copy.deepcopy(model)
    chunks = chunks_of(model, 2, 2)
    assert chunks.plan.cuts == chunks_of(toy(), 2, 2).plan.cuts
    graphs = [body.graph.gm for bodies in chunks.bodies for body in bodies.values()]
    assert all("checkpoint_in_python" in graph_text(gm) for gm in graphs)
    run(modules_of(chunks), TOKENS).square().sum().backward()
    logits_of(reference).square().sum().backward()
    for (name, parameter), expected in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-10, atol=1e-12, msg=name)


# The store


@pytest.mark.parametrize("local", [True, False])
def test_parts_of_layers(local: bool) -> None:
    """Chunks of a rank that has some tokens: their queries are used on these alone, and a DTensor cannot be sent."""
    model, tokens = titan.prepared(), titan.ids()
    with fake_mesh() as mesh:
        titan.sequence_parallel(model, mesh, local)
        cut = CutOptions(StageLayout(2, 1))
        if not local:
            with pytest.raises(PipelineSupportError, match="is a DTensor, and torch's pipelines"):
                build_chunks(model, (tokens,), {}, cut)
            return
        chunks = build_chunks(model, (tokens,), {}, cut)
        groups = [
            origin.groups
            for body in chunks.bodies[0].values()
            for origin in body.origins.values()
            if isinstance(origin, ModelTensor) and origin.names[0].startswith("attnres.streams")
        ]
        assert groups
        assert set(groups) == {(mesh.get_group().group_name,)}


def test_an_optimizer_of_one_rank_holds_its_chunks() -> None:
    """The first chunk has no read with parameters; to leave out those of the second is an error."""
    model, tokens = titan.prepared(), titan.ids()
    chunks = build_chunks(model, (tokens,), {}, CutOptions(StageLayout(4, 1)))
    for body, has_reads in zip(chunks.bodies[:2], (False, True), strict=True):
        module = ChunkModule(body)
        optimizer_check.note_chunks(model, [module])
        plain = [one for name, one in module.named_parameters() if not name.startswith("attnres.")]
        optimizer = torch.optim.SGD(plain, 0.1)
        for one in plain:
            one.grad = torch.ones_like(one)
        optimizer_check.watch_optimizers()
        with fake_mesh():
            optimizer.step()  # another optimizer may hold the rest, and has stepped before the second time
            with pytest.raises(OptimizerError, match="AttnRes parameters") if has_reads else contextlib.nullcontext():
                optimizer.step()


def test_store_is_used_in_order() -> None:
    store = BlockStore()
    value = torch.ones(2, requires_grad=True) * 2
    store.put(0, 1, value)
    with pytest.raises(StoreError, match="kept twice"):
        store.put(0, 1, value)
    leaf = store.leaf(0, 1, requires_grad=True)
    assert leaf.is_leaf
    assert leaf.requires_grad
    store.add_gradient(0, 1, torch.ones(2))
    store.add_gradient(0, 1, torch.ones(2))
    with pytest.raises(StoreError, match="still kept"):
        store.check_empty()
    store.drop(0, 1)
    assert store.take_gradient(0, 1).tolist() == [2, 2]
    assert store.take_gradient(0, 1) is None
    store.check_empty()


# Schedules, batches, and torch itself


@pytest.mark.parametrize(
    ("name", "layout", "microbatches", "inner", "message"),
    [
        ("1F1B", StageLayout(2, 2), 4, "eager", "1F1B runs one chunk per rank, and virtual=2"),
        ("GPipe", StageLayout(2, 2), 4, "eager", "GPipe runs one chunk per rank"),
        ("1F1B", StageLayout(4), 3, "eager", "at least as many micro-batches as chunks, 4, and microbatches=3"),
        ("Interleaved1F1B", StageLayout(2, 2), 5, "eager", "needs a multiple of 2 micro-batches"),
        ("ZBVZeroBubble", StageLayout(2, 3, StageOrder.V), 4, "eager", "take virtual=2"),
        ("DualPipeV", StageLayout(2, 2, StageOrder.V), 3, "eager", "as many micro-batches as chunks, 4"),
        ("InterleavedZeroBubble", StageLayout(2, 2), 4, "inductor", 'take inner="eager", or Interleaved1F1B'),
    ],
)
def test_limits_of_schedules(name: str, layout: StageLayout, microbatches: int, inner: str, message: str) -> None:
    with pytest.raises(PipelineSupportError) as caught:
        check_schedule(schedule_kind(name), layout, microbatches, inner)
    assert message in str(caught.value)


def test_torch_has_every_schedule() -> None:
    from torch.distributed.pipelining import schedules

    assert all(hasattr(schedules, kind.class_name) for kind in KINDS)
    assert schedule_kind("dualpipev").class_name == "ScheduleDualPipeV"
    with pytest.raises(PipelineSupportError, match="did you mean 'Interleaved1F1B'"):
        schedule_kind("interleaved")


def test_batches_that_cannot_be_split() -> None:
    with pytest.raises(PipelineBatchError, match="a batch of 8 cannot be split into 3"):
        batch_of({"x": torch.zeros(8, 2)}, 3)
    with pytest.raises(PipelineBatchError, match="must have the rows of the batch first"):
        batch_of({"x": torch.zeros(8, 2), "positions": torch.zeros(1, 2)}, 2)
    batch = batch_of({"x": torch.zeros(8, 2)}, 2)
    assert batch.error_of({"x": torch.zeros(8, 2)}, {"x"}, torch.zeros(8)) is None
    for given, target, message in (
        ({}, None, "x is missing"),
        ({"x": torch.zeros(8, 3)}, None, r"float32\[8, 3\]"),
        ({"x": torch.zeros(8, 2, dtype=torch.float64)}, None, r"float64\[8, 2\]"),
        ({"x": torch.zeros(8, 2)}, torch.zeros(6), "target has shape"),
    ):
        with pytest.raises(PipelineBatchError, match=message):
            raise batch.error_of(given, {"x"}, target)


def test_older_torch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    torch_stage.check_torch()
    monkeypatch.setattr(torch_stage, "torch_version", lambda: (2, 11))
    with pytest.raises(PipelineSupportError, match=r"pipelines were checked with torch 2\.13"):
        torch_stage.check_torch()


@pytest.mark.parametrize("hook", torch_stage.HOOKS)
def test_missing_hook_is_named(hook: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hook in vars(torch_stage.ChunkStage), "what the list names is overridden"
    fake = type("PipelineStage", (), {name: len for name in torch_stage.HOOKS if name != hook})
    monkeypatch.setattr(torch_stage, "PipelineStage", fake)
    with pytest.raises(PipelineSupportError, match=f"has no {hook}"):
        torch_stage.check_torch()


def test_no_process_group() -> None:
    assert not dist.is_initialized()
    with pytest.raises(PipelineSupportError, match="start the script with torchrun"):
        attnres_compile.pipeline(Toy(6), (TOKENS,), microbatches=2)


def test_the_function_is_no_module() -> None:
    """The folder has another name than the function, so that importing one does not hide the other."""
    assert callable(attnres_compile.pipeline)


def test_error_of_a_model_that_cannot_be_cut() -> None:
    with pytest.raises(StageError, match="is a parameter that chunks 0, 2 use"):
        chunks_of(prepared(Toy(6, tied=True)))
