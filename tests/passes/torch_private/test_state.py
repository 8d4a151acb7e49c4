"""State of torch around the caller: put back, looked at, left out."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from attnres_passes.torch_private.example_values import is_fake
from attnres_passes.torch_private.state import in_backward, restored_torch_state, unseen_by_checkpoints, without_modes
from tests.passes.helpers import sample


def test_random_state_and_grad_mode_are_put_back() -> None:
    state = torch.get_rng_state()

    def change_and_fail() -> None:
        torch.rand(3)
        torch.set_grad_enabled(False)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), restored_torch_state():
        change_and_fail()
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)


def test_autocast_is_put_back() -> None:
    with contextlib.ExitStack() as left_open:
        with restored_torch_state():
            left_open.enter_context(torch.autocast("cpu", torch.bfloat16))
        assert not torch.is_autocast_enabled("cpu")


def test_a_ban_on_hooks_is_put_back() -> None:
    """What a graph with ``torch.func.vjp`` in it does, and fails behind."""

    def ban_and_fail() -> None:
        torch._C._autograd._saved_tensors_hooks_disable("not here")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), restored_torch_state():
        ban_and_fail()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda packed: packed):
        pass
    with torch.autograd.graph.disable_saved_tensors_hooks("already banned"):
        with restored_torch_state():
            torch._C._autograd._saved_tensors_hooks_enable()
        assert torch._C._autograd._saved_tensors_hooks_get_disabled_error_message() == "already banned"


def test_without_modes_nothing_is_fake() -> None:
    with FakeTensorMode():
        assert is_fake(torch.ones(2))
        with without_modes():
            assert not is_fake(torch.ones(2))


def test_in_backward() -> None:
    seen = []
    x = sample().requires_grad_()
    x.register_hook(lambda grad: seen.append(in_backward()))
    x.sum().backward()
    assert seen == [True]
    assert not in_backward()


def test_a_checkpoint_does_not_see_what_is_saved_unseen() -> None:
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda packed: packed):
        with unseen_by_checkpoints():
            out = sample().requires_grad_().exp()
        assert saved == []
        sample().requires_grad_().exp()
    assert len(saved) == 1
    out.sum().backward()
