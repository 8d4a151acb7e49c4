"""Ordinary use of a prepared model, with the real libraries: every call is the rewrite, and there is no noise."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import attnres_compile as ac
from attnres_compile.model.errors import StalePlanError

transformers = pytest.importorskip("transformers")

WIDTH, VOCABULARY = 32, 64


def token_ids() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, VOCABULARY, (2, 10), generator=generator)


def tiny(architecture: str) -> Any:
    sizes = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if architecture == "gpt2":
        config = transformers.GPT2Config(n_embd=WIDTH, n_layer=2, n_head=2, n_positions=64, **sizes)
        return transformers.GPT2LMHeadModel(config)
    config = transformers.LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        **sizes,
    )
    return transformers.LlamaForCausalLM(config)


def prepared(architecture: str = "llama", compiled: bool = True) -> Any:
    model = tiny(architecture)
    ac.prepare(model, kwargs={"input_ids": token_ids()}, num_blocks=2, inner="eager")
    if compiled:
        model.compile(backend="attnres")
    return model


def training(model: Any, called: Callable[..., Any] | None = None) -> nn.Module:
    """Three steps, as the README has them."""
    optimizer = torch.optim.AdamW(ac.param_groups(model, lr=1e-3, weight_decay=0.1))
    for _ in range(3):
        (called or model)(input_ids=token_ids(), labels=token_ids()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def readme(folder: Path) -> nn.Module:
    return training(prepared())


def training_and_evaluation_in_turns(folder: Path) -> nn.Module:
    model = prepared()
    for _ in range(2):
        training(model.train())
        with torch.no_grad():
            model.eval()(input_ids=token_ids())
    return model


def trainer(folder: Path) -> nn.Module:
    """With evaluation, checkpoints, and a second one that resumes."""
    pytest.importorskip("accelerate")
    data = [{"input_ids": token_ids()[0], "labels": token_ids()[0]}] * 8
    for steps in (2, 4):
        model = prepared()
        arguments = transformers.TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=2,
            max_steps=steps,
            save_steps=2,
            eval_strategy="steps",
            eval_steps=2,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        made = transformers.Trainer(model=model, args=arguments, train_dataset=data, eval_dataset=data)
        made.train(resume_from_checkpoint=steps == 4)
    return model


def lightning(folder: Path) -> nn.Module:
    """``self.model.compile`` in ``configure_model``."""
    lightning = pytest.importorskip("pytorch_lightning")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = tiny("llama")

        def configure_model(self) -> None:
            if not hasattr(self.model, "attnres"):
                ac.prepare(self.model, kwargs={"input_ids": token_ids()}, num_blocks=2, inner="eager")
                self.model.compile(backend="attnres")

        def training_step(self, batch: Tensor, index: int) -> Tensor:
            return self.model(input_ids=batch, labels=batch).loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(ac.param_groups(self.model, lr=1e-3, weight_decay=0.0))

    module = Module()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    made = lightning.Trainer(
        max_steps=3, accelerator="cpu", enable_model_summary=False, default_root_dir=str(folder), **quiet
    )
    made.fit(module, torch.utils.data.DataLoader(token_ids().repeat(4, 1), batch_size=2))
    return module.model


def accelerate_in_bf16(folder: Path) -> nn.Module:
    accelerate = pytest.importorskip("accelerate")
    model = prepared()
    state = accelerate.state.AcceleratorState
    state._reset_state(True)
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    optimizer = torch.optim.AdamW(ac.param_groups(model, lr=1e-3, weight_decay=0.0))
    model, optimizer = accelerator.prepare(model, optimizer)
    for _ in range(2):
        accelerator.backward(model(input_ids=token_ids(), labels=token_ids()).loss)
        optimizer.step()
        optimizer.zero_grad()
    state._reset_state(True)
    return model


def offloaded_to_the_cpu(folder: Path) -> nn.Module:
    """The whole model moves to the device before a call and back behind others."""
    accelerate = pytest.importorskip("accelerate")
    model, hook = accelerate.cpu_offload_with_hook(prepared(compiled=False), execution_device=torch.device("cpu"))
    model.compile(backend="attnres")
    for _ in range(2):
        model(input_ids=token_ids())
    hook.offload()
    model(input_ids=token_ids())
    return model


def offloaded_layer_by_layer(folder: Path) -> nn.Module:
    """Each module has its parameters for its own forward only; those of reads, which others use, stay."""
    accelerate = pytest.importorskip("accelerate")
    model = prepared(compiled=False).eval()
    with torch.no_grad():
        for number, one in enumerate(model.attnres.parameters()):
            one.add_(torch.randn(one.shape, generator=torch.Generator().manual_seed(number)))
        model.compile(backend="attnres", options={"inner": "eager"})
        wanted = model(input_ids=token_ids()).logits
        torch.compiler.reset()
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
        with pytest.raises(StalePlanError, match="remove_hook_from_module"):
            model(input_ids=token_ids())
        accelerate.hooks.remove_hook_from_module(model.attnres, recurse=True)
        torch.testing.assert_close(model(input_ids=token_ids()).logits, wanted)
    return model


def activations_on_the_cpu(folder: Path) -> nn.Module:
    model = prepared()

    def called(**inputs: Tensor) -> Any:
        with torch.autograd.graph.save_on_cpu():
            return model(**inputs)

    return training(model, called)


def data_parallel(folder: Path) -> nn.Module:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    try:
        model = prepared()
        return training(model, nn.parallel.DistributedDataParallel(model))
    finally:
        torch.distributed.destroy_process_group()


def scaled_and_clipped(folder: Path) -> nn.Module:
    model, scaler = prepared(), torch.amp.GradScaler("cpu")
    optimizer = torch.optim.AdamW(ac.param_groups(model, lr=1e-3, weight_decay=0.0))
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=token_ids(), labels=token_ids()).loss
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    return model


def lora(folder: Path) -> nn.Module:
    """The AttnRes parameters are frozen, as all of the model but the adapters."""
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(prepared(), peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad])
    for _ in range(2):
        model(input_ids=token_ids(), labels=token_ids()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


class CheckpointedBranch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)

    def branch(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(self.norm(x)))

    def forward(self, x: Tensor) -> Tensor:
        return x + checkpoint(self.branch, x, use_reentrant=False)


def checkpointed_branches(folder: Path) -> nn.Module:
    layers = [CheckpointedBranch() for _ in range(3)]
    model, x = nn.Sequential(nn.Linear(WIDTH, WIDTH), *layers, nn.LayerNorm(WIDTH)), torch.randn(2, 5, WIDTH)
    ac.prepare(model, (x,), inner="aot_eager")
    model.compile(backend="attnres")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        model(x).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


USES = [
    readme,
    training_and_evaluation_in_turns,
    trainer,
    lightning,
    accelerate_in_bf16,
    offloaded_to_the_cpu,
    offloaded_layer_by_layer,
    activations_on_the_cpu,
    scaled_and_clipped,
    lora,
    checkpointed_branches,
    pytest.param(data_parallel, marks=pytest.mark.processes),
]


@pytest.mark.parametrize("use", USES)
def test_no_noise(use: Callable[[Path], nn.Module], tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        in_order(use(tmp_path))
    assert not [str(warning.message) for warning in caught if "attnres" in str(warning.message).lower()]


@pytest.mark.parametrize("padded", [False, True], ids=["", "left padding"])
@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("llama", {}),
        ("gpt2", {}),
        ("llama", {"cache_implementation": "static"}),
        ("llama", {"num_beams": 3}),
    ],
    ids=["dynamic cache", "gpt2", "static cache", "beam search"],
)
def test_generate(architecture: str, options: dict[str, Any], padded: bool) -> None:
    """Zero queries under scale="sum" generate what the plain model generates."""
    model = tiny(architecture).eval()
    ids, mask = token_ids(), torch.ones(2, 10, dtype=torch.long)
    if padded:
        ids[0, :3], mask[0, :3] = 0, 0
    generation = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, **options}
    expected = model.generate(ids, **generation)
    ac.prepare(model, kwargs={"input_ids": token_ids()}, num_blocks=2, inner="eager", scale="sum")
    model.compile(backend="attnres")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert torch.equal(model.generate(ids, **generation), expected)
    assert not [str(warning.message) for warning in caught if "attnres" in str(warning.message).lower()]
    in_order(model)


def in_order(model: nn.Module) -> None:
    status = ac.status(model)
    assert status.state == "rewritten"
    assert status.rewritten_calls > 0
    assert status.plain_calls == status.plain_on_purpose_calls == status.refused_calls == 0
