"""A plain loop: autocast in bf16, or in fp16 with a scaler; accumulation, clipping, and a checkpoint to resume from.

python examples/plain_loop.py
"""

import copy

import torch
from small_llama import byte_rows, parsed, small_llama

import attnres_compile

arguments = parsed(__doc__)
ACCUMULATED = 2


class Run:
    """All that a checkpoint has to hold."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self.step = dtype, 0
        self.model = small_llama(arguments.layers, attention_dropout=0.1, use_cache=False)
        attnres_compile.prepare(self.model, kwargs={"input_ids": next(byte_rows())}, num_blocks=4)
        self.model.compile(backend="attnres", options={"inner": arguments.inner})
        self.optimizer = torch.optim.AdamW(attnres_compile.param_groups(self.model, lr=3e-3, weight_decay=0.1))
        # fp16 has few exponents: small gradients would be zeros. bf16 needs no scaler.
        self.scaler = torch.amp.GradScaler("cpu", enabled=dtype is torch.float16)

    def state(self) -> dict:
        """For torch.save. attnres.plan_tensor among the weights says what the AttnRes parameters mean."""
        parts = {name: getattr(self, name).state_dict() for name in ("model", "optimizer", "scaler")}
        return copy.deepcopy({**parts, "step": self.step, "random": torch.get_rng_state()})

    def load(self, state: dict) -> None:
        for name in ("model", "optimizer", "scaler"):
            getattr(self, name).load_state_dict(state[name])
        self.step = state["step"]
        torch.set_rng_state(state["random"])

    def train(self, until: int) -> None:
        data = byte_rows()
        for _ in range(self.step * ACCUMULATED):
            next(data)
        while self.step < until:
            self.step += 1
            for _ in range(ACCUMULATED):
                rows = next(data)
                with torch.autocast("cpu", self.dtype):
                    loss = self.model(input_ids=rows, labels=rows).loss / ACCUMULATED
                self.scaler.scale(loss).backward()
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad()
            if self.step % 5 == 1:
                print(f"{self.dtype} step {self.step:3d}  loss {loss.item() * ACCUMULATED:.3f}")


for dtype in (torch.bfloat16, torch.float16):
    whole = Run(dtype)
    whole.train(arguments.steps // 2)
    checkpoint = whole.state()
    whole.train(arguments.steps)
    resumed = Run(dtype)
    resumed.load(checkpoint)
    resumed.train(arguments.steps)
    other = resumed.model.state_dict()
    differing = [name for name, value in whole.model.state_dict().items() if not torch.equal(value, other[name])]
    print(f"{dtype} resumed: {len(differing)} of {len(other)} tensors differ from the uninterrupted run's")
    print(attnres_compile.status(whole.model))
