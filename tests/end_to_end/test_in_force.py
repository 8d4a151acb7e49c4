"""Every way to call a prepared model gives its rewrite, or NotInForceError: none runs it plain in silence."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import attnres_compile as ac
from attnres_compile.model import errors
from attnres_compile.model.in_force import guard
from tests.end_to_end import ways_of_change  # noqa: F401  (adds to WAYS)
from tests.end_to_end.guarded_model import Body, Net, by_hand, prepared
from tests.end_to_end.ways import WAYS, Around

# Where another mistake than a plain run is to be named, and where torch itself cannot do what was asked.
OTHER_ERRORS: dict[str, type[Exception]] = {
    "dual_numbers": NotImplementedError,
    "transform_in_a_function_of_ours": errors.StalePlanError,
}


def outcome(name: str, training: bool) -> str:
    """What a way gave: "rewrite", "refused", "plain" or "something else"."""
    torch.manual_seed(0)
    x = torch.randn(2, 4, 8, dtype=torch.float64)
    model = prepared(x).train(training)
    with warnings.catch_warnings(), torch.set_grad_enabled(training):
        warnings.simplefilter("ignore")
        try:
            given = WAYS[name](model, x)
        except Exception as error:
            wanted = OTHER_ERRORS.get(name, errors.NotInForceError)
            if any(isinstance(one, wanted) for one in chain(error)):
                return "refused"
            raise
        output, used = given if isinstance(given, tuple) else (given, model)
        kinds = {"rewrite": by_hand(used, seen(output, x)), "plain": Net.forward(plain_model(used), seen(output, x))}
        kind = next(
            (kind for kind, value in kinds.items() if torch.allclose(value, output, atol=1e-9)), "something else"
        )
        if training and kind == "rewrite" and output.requires_grad:
            check_gradients(used, output, kinds["rewrite"])
    return kind


def seen(output: Tensor, x: Tensor) -> Tensor:
    """The input that the last call of the way saw."""
    return x if output.shape[1] == x.shape[1] else x[:, :1].expand(-1, output.shape[1], -1)


def plain_model(model: Net) -> Net:
    """A model of the same weights that was never prepared."""
    plain = Net().double()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("attnres")})
    plain.body.blocks[0].norm.eps = model.body.blocks[0].norm.eps
    return plain


def check_gradients(model: Net, output: Tensor, expected: Tensor) -> None:
    parameters = list(model.parameters())
    theirs = torch.autograd.grad(expected.sum(), parameters, retain_graph=True)
    model.zero_grad()
    output.sum().backward()
    for (name, parameter), right in zip(model.named_parameters(), theirs, strict=True):
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, right, msg=lambda text, name=name: f"{name}: {text}")
    assert all(parameter.grad is not None for parameter in model.attnres.parameters())


def chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        yield from [inner] if isinstance(inner := getattr(error, "inner_exception", None), BaseException) else []
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("name", WAYS)
def test_every_way_is_the_rewrite_or_an_error(name: str, training: bool) -> None:
    assert outcome(name, training) in ("rewrite", "refused")


def test_with_the_guard_taken_out_they_run_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table can fail: a dozen of its ways find a plain model where nothing guards it."""
    monkeypatch.setattr(guard, "install", lambda *args: None)
    monkeypatch.setattr(guard, "connect", lambda *args: None)
    found: list[str] = []
    for name in WAYS:
        if found.count("plain") == 12:
            break
        torch._dynamo.reset()
        try:
            found.append(outcome(name, training=False))
        except Exception:
            found.append("raises")
    assert found.count("plain") == 12, dict(zip(WAYS, found, strict=False))


def a_model() -> tuple[Net, Tensor]:
    x = torch.randn(2, 4, 8, dtype=torch.float64)
    return prepared(x), x


@pytest.mark.parametrize("compiled", [False, True])
def test_plain_on_purpose(compiled: bool) -> None:
    model, x = a_model()
    expected, rewritten = plain_model(model)(x), by_hand(model, x)
    if compiled:
        model.compile(backend="attnres", options={"inner": "eager"})
        torch.testing.assert_close(model(x), rewritten)
    with ac.plain(model):
        torch.testing.assert_close(model(x), expected)
        with ac.plain(model):
            torch.testing.assert_close(model(x), expected)
        torch.testing.assert_close(model(x), expected)
        assert ac.status(model).state == "plain on purpose"
    assert ac.status(model).plain_on_purpose_calls == 3
    if compiled:
        torch.testing.assert_close(model(x), rewritten)
        assert ac.status(model).state == "rewritten"
        assert ac.status(model).graphs_kept == 2
    else:
        with pytest.raises(errors.NotInForceError, match="never compiled"):
            model(x)
        assert ac.status(model).state == "refused"


def test_plain_on_purpose_in_a_function_of_another_backend() -> None:
    """The graph that was made inside does not serve outside."""
    model, x = a_model()
    expected = plain_model(model)(x)
    step = torch.compile(lambda value: model(value) + 0, backend="aot_eager")
    with ac.plain(model):
        torch.testing.assert_close(step(x), expected)
    with pytest.raises(errors.NotInForceError, match="takes it into a graph of the backend 'aot_eager'"):
        step(x)


def test_plain_on_purpose_where_a_break_comes_before_the_stream() -> None:
    model, x = a_model()
    model.body.between = lambda number, _: torch._dynamo.graph_break() if number < 0 else None
    model.compile(backend="attnres", options={"inner": "eager"})
    for _ in range(2):
        torch.testing.assert_close(model(x), by_hand(model, x))
        with ac.plain(model):
            torch.testing.assert_close(model(x), plain_model(model)(x))


def test_warnings_instead_of_errors_once_per_cause() -> None:
    x = torch.randn(2, 4, 8, dtype=torch.float64)
    model = prepared(x, on_plain="warn")
    expected = plain_model(model)(x)
    with pytest.warns(UserWarning, match="never compiled"):
        torch.testing.assert_close(model(x), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(x)
    with pytest.warns(UserWarning, match="compiled with the backend 'eager'"):
        torch.testing.assert_close(torch.compile(model, backend="eager")(x), expected)
    assert ac.status(model).plain_calls == 3
    assert ac.status(model).state == "plain"


def test_a_copy_is_guarded_by_itself() -> None:
    model, x = a_model()
    copied = copy.deepcopy(model)
    with ac.plain(model), pytest.raises(errors.NotInForceError, match="this copy of a prepared model was never"):
        copied(x)
    assert ac.status(model).refused_calls == 0
    assert ac.status(copied).refused_calls == 1


def test_the_class_keeps_its_name_and_its_signature() -> None:
    model, _ = a_model()
    assert isinstance(model, Net)
    assert (type(model).__name__, type(model).__qualname__, type(model).__module__) == ("Net", "Net", Net.__module__)
    assert inspect.signature(model.forward) == inspect.signature(Net().forward)
    assert list(model.state_dict()) == list(plain_model(model).state_dict()) + [
        name for name in model.state_dict() if name.startswith("attnres")
    ]
    ac.unprepare(model)
    assert type(model) is Net
    assert type(model.body) is Body
    assert not any(name.startswith("_attnres") for module in model.modules() for name in vars(module))


def test_status_is_found_from_a_wrapper() -> None:
    model, x = a_model()
    model.compile(backend="attnres", options={"inner": "eager"})
    model(x)
    wrappers = [Around(model), nn.DataParallel(model), torch.compile(model, backend="attnres"), nn.Sequential(model)]
    for wrapper in wrappers:
        assert ac.status(wrapper) == ac.status(model)
    assert ac.status(torch.optim.swa_utils.AveragedModel(model)).state == "prepared"
    with (
        pytest.raises(errors.NotPreparedError, match="holds 2 prepared models"),
        ac.plain(nn.ModuleList([model, copy.deepcopy(model)])),
    ):
        pass


def test_a_hundred_shapes() -> None:
    """Without dynamic sizes an error at the limit, which names guard and mend; with them, two graphs at most."""
    model, x = a_model()
    model.compile(backend="attnres", options={"inner": "eager"}, dynamic=False)
    shapes = [x[:, :1].expand(-1, length, -1) for length in range(2, 102)]
    limit = torch._dynamo.config.recompile_limit
    for value in shapes[:limit]:
        torch.testing.assert_close(model(value), by_hand(model, value))
    assert ac.status(model).recompiles_left == 0
    wanted = rf"compiled it {limit} times, the limit of .*recompile_limit.*size mismatch.*dynamic=True"
    for value in shapes[limit:]:
        with pytest.raises(errors.NotInForceError, match=wanted):
            model(value)
    torch.testing.assert_close(model(shapes[0]), by_hand(model, shapes[0]))
    torch._dynamo.reset()
    model.compile(backend="attnres", options={"inner": "eager"})
    before = ac.status(model).graphs
    for value in shapes:
        torch.testing.assert_close(model(value), by_hand(model, value))
    assert ac.status(model).graphs - before <= 2


class InTheRoot(nn.Module):
    """Sublayers that are code of the model itself, so that no module's path tells them apart."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.randn(8, 8, dtype=torch.float64) / 3 for _ in range(4))
        self.normed = True

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.weights:
            x = x + torch.tanh((nn.functional.layer_norm(x, (8,)) if self.normed else x) @ weight)
        return nn.functional.layer_norm(x, (8,))


@pytest.mark.parametrize("called_before", [False, True])
def test_a_later_graph_without_the_stream(called_before: bool) -> None:
    model, x = InTheRoot(), torch.randn(2, 4, 8, dtype=torch.float64)
    ac.prepare(model, (x,), block_size=1)
    model.compile(backend="attnres", options={"inner": "eager"})
    if called_before:
        model(x)
    model.normed = False
    with pytest.raises(errors.StalePlanError, match="without holding the stream"):
        model(x)
    assert ac.status(model).state == "stale"
    model.normed = True
    model(x)
    assert ac.status(model).state == "rewritten"


@pytest.mark.processes
def test_sharded_models_are_guarded(tmp_path: Path) -> None:
    """FSDP2 gives modules classes of its own, before or after ours."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        model, x = a_model()
        expected = by_hand(model, x).detach()
        torch.distributed.fsdp.fully_shard(model, mesh=mesh)
        with pytest.raises(errors.NotInForceError, match="never compiled"):
            model(x)
        model.compile(backend="attnres", options={"inner": "eager"})
        torch.testing.assert_close(model(x), expected)
        ac.unprepare(model)
        plain = plain_model(prepared(x))(x)
        torch.testing.assert_close(model(x), plain)
        ac.prepare(model, (x,), block_size=1)
        with pytest.raises(errors.NotInForceError, match="never compiled"):
            model(x)
    finally:
        torch.distributed.destroy_process_group()
