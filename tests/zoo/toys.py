"""Small models written for the zoo, one peculiarity each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.zoo import toy_blocks as blocks
from tests.zoo import toy_declined
from tests.zoo.case import Built, Case, Expected

VOCAB = 64
WIDTH = 32
LAYERS = 3
LENGTH = 12

TWO_PER_LAYER = (Expected(writes=2 * LAYERS, reads=2 * LAYERS + 1),)


def random_tokens(length: int = LENGTH) -> Tensor:
    return torch.randint(0, VOCAB, (2, length))


class StackedModel(nn.Module):
    """Embedding, blocks, final norm, head: the frame around the blocks under test."""

    def __init__(self, make_block: Callable[[], nn.Module], layers: int = LAYERS, width: int = WIDTH) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, width)
        self.blocks = nn.ModuleList(make_block() for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCAB, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class NanoGPT(nn.Module):
    """The functional style of a one-file GPT: tied embedding, and a loss when targets are given."""

    def __init__(self, layers: int = LAYERS) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(VOCAB, WIDTH),
                "wpe": nn.Embedding(LENGTH, WIDTH),
                "drop": nn.Dropout(0.0),
                "h": nn.ModuleList(blocks.PreNormBlock(WIDTH) for _ in range(layers)),
                "ln_f": nn.LayerNorm(WIDTH),
            }
        )
        self.lm_head = nn.Linear(WIDTH, VOCAB, bias=False)
        self.lm_head.weight = self.transformer["wte"].weight

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        positions = torch.arange(idx.shape[1], device=idx.device)
        x = self.transformer["drop"](self.transformer["wte"](idx) + self.transformer["wpe"](positions))
        for block in self.transformer["h"]:
            x = block(x)
        x = self.transformer["ln_f"](x)
        if targets is None:
            return self.lm_head(x[:, [-1], :]), None
        logits = self.lm_head(x)
        loss = nn.functional.cross_entropy(logits.view(-1, VOCAB), targets.view(-1), ignore_index=-1)
        return logits, loss


class TiedModel(StackedModel):
    """The head is the embedding's own weight, used as a function argument."""

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return nn.functional.linear(self.norm(x), self.embedding.weight)


class SharedBlockModel(StackedModel):
    """One block, applied again and again."""

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for _ in range(LAYERS):
            x = self.blocks[0](x)
        return self.head(self.norm(x))


class RawOutputModel(StackedModel):
    """The last state leaves as it is."""

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return x


class RawHeadModel(StackedModel):
    """The head reads the last state without a norm."""

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class HiddenStatesModel(StackedModel):
    """Each block's input is returned raw beside the logits."""

    def forward(self, tokens: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        x = self.embedding(tokens)
        hidden_states = []
        for block in self.blocks:
            hidden_states.append(x)
            x = block(x)
        return self.head(self.norm(x)), tuple(hidden_states)


class EncoderDecoder(nn.Module):
    """Two streams; the decoder sees the encoder's normed output."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, WIDTH)
        self.encoder = nn.ModuleList(blocks.PreNormBlock(WIDTH, causal=False) for _ in range(2))
        self.encoder_norm = nn.LayerNorm(WIDTH)
        self.decoder = nn.ModuleList(blocks.CrossBlock(WIDTH) for _ in range(LAYERS))
        self.decoder_norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory = self.embedding(source)
        for block in self.encoder:
            memory = block(memory)
        memory = self.encoder_norm(memory)
        x = self.embedding(target)
        for block in self.decoder:
            x = block(x, memory)
        return self.head(self.decoder_norm(x))


class MixedPrecisionModel(nn.Module):
    """Branches in bfloat16, additions in float32, the state handed on in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, WIDTH, dtype=torch.bfloat16)
        self.blocks = nn.ModuleList(blocks.CastBlock(WIDTH) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH, dtype=torch.bfloat16)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def deep_toy(layers: int, width: int = WIDTH) -> nn.Module:
    """A plain PreNorm model of any depth: two writes a layer, one read each, and the final norm."""
    return StackedModel(lambda: blocks.PreNormBlock(width), layers, width)


def _case(
    name: str,
    make_model: Callable[[], nn.Module],
    streams: tuple[Expected, ...],
    why: str,
    *,
    training: bool = False,
    inputs: Callable[[], tuple] = lambda: (random_tokens(),),
) -> Case:
    def build() -> Built:
        torch.manual_seed(0)
        return make_model().train(training), inputs(), {}

    return Case(f"toy_{name}", build, streams, None, why)


def _stack(
    name: str,
    block: type[nn.Module],
    why: str,
    streams: tuple[Expected, ...] = TWO_PER_LAYER,
    training: bool = False,
) -> Case:
    return _case(name, lambda: StackedModel(lambda: block(WIDTH)), streams, why, training=training)


NANOGPT_READS = tuple(f"transformer.h.{layer}.{norm}" for layer in range(LAYERS) for norm in ("ln_1", "ln_2"))
NANOGPT_STREAM = (Expected(writes=2 * LAYERS, reads=2 * LAYERS + 1, read_modules=(*NANOGPT_READS, "transformer.ln_f")),)
SHARED_READS = (*(("blocks.0.ln_1", "blocks.0.ln_2") * LAYERS), "norm")

ACCEPTED_CASES = (
    _case(
        "nanogpt",
        NanoGPT,
        NANOGPT_STREAM,
        "Two additions a block, and ln_f; the head takes the last position after the norm.",
    ),
    _case(
        "nanogpt_loss",
        NanoGPT,
        NANOGPT_STREAM,
        "As nanogpt; the loss comes after the final norm.",
        training=True,
        inputs=lambda: (random_tokens(), random_tokens()),
    ),
    _stack(
        "parallel_one_norm",
        blocks.ParallelOneNormBlock,
        "`x + (attn + mlp)` behind one norm: one write and one read a block.",
        (Expected(writes=LAYERS, reads=LAYERS + 1),),
    ),
    _stack(
        "parallel_two_norms",
        blocks.ParallelTwoNormsBlock,
        "`x + attn + mlp` adds twice, both branches read the block's input through a norm each, and nobody "
        "reads the state in between.",
    ),
    _stack("inplace_iadd", blocks.InplaceIaddBlock, "`x += f(x)` writes as `x = x + f(x)` does."),
    _stack("inplace_add_method", blocks.InplaceAddMethodBlock, "`x.add_(f(x))` writes as `x = x + f(x)` does."),
    _stack("inplace_on_branch", blocks.InplaceOnBranchBlock, "`branch += x` makes the branch the next state."),
    _stack(
        "dropout_on_branch",
        blocks.DropoutOnBranchBlock,
        "Dropout in training acts on the branch, before the addition.",
        training=True,
    ),
    _stack(
        "dropout_on_stream",
        blocks.DropoutOnStreamBlock,
        "`x = dropout(x + f(x))` in training: the stream goes on through the dropout.",
        training=True,
    ),
    _case(
        "tied_embedding",
        lambda: TiedModel(lambda: blocks.PreNormBlock(WIDTH)),
        TWO_PER_LAYER,
        "The embedding's weight is used for the logits too, after the final norm.",
    ),
    _case(
        "shared_layer",
        lambda: SharedBlockModel(lambda: blocks.PreNormBlock(WIDTH), layers=1),
        (Expected(writes=2 * LAYERS, reads=2 * LAYERS + 1, read_modules=SHARED_READS),),
        "The same block is applied three times; its two norms are six reads.",
    ),
    _case(
        "encoder_decoder",
        EncoderDecoder,
        (Expected(writes=4, reads=5), Expected(writes=3 * LAYERS, reads=3 * LAYERS + 1)),
        "Two additions per encoder block, three per decoder block, a norm each, a final norm per stack.",
        inputs=lambda: (random_tokens(), random_tokens(9)),
    ),
    _stack("commuted_operands", blocks.CommutedBlock, "`f(x) + x` is the same addition."),
    _case(
        "stream_cast",
        MixedPrecisionModel,
        TWO_PER_LAYER,
        "States are cast to float32 for the addition and back to bfloat16 after it; a cast does not end the stream.",
    ),
    _stack(
        "stream_reshaped",
        blocks.ReshapedBlock,
        "The MLP's addition runs on [B * T, d] and is viewed back; a view does not end the stream.",
    ),
    _stack(
        "layer_scale",
        blocks.LayerScaleBlock,
        "Each branch is multiplied by a learned vector before it is added.",
    ),
    _stack(
        "drop_path",
        blocks.DropPathBlock,
        "Stochastic depth in training multiplies each sample's branch by 0 or 1 / keep before it is added.",
        training=True,
    ),
    _stack(
        "sandwich_norm",
        blocks.SandwichBlock,
        "The norms on the branches are not reads; those on the states are.",
    ),
    _stack(
        "handwritten_rms_norm",
        blocks.HandwrittenNormBlock,
        "`x * rsqrt(mean(x ** 2) + eps) * weight`: two readers of the state that are one read.",
    ),
    _case(
        "raw_output",
        lambda: RawOutputModel(lambda: blocks.PreNormBlock(WIDTH)),
        (Expected(writes=2 * LAYERS, reads=2 * LAYERS + 1, unnormed=1),),
        "The last state is the output itself: an unnormed read that feeds no write.",
    ),
    _case(
        "raw_head",
        lambda: RawHeadModel(lambda: blocks.PreNormBlock(WIDTH)),
        (Expected(writes=2 * LAYERS, reads=2 * LAYERS + 1, unnormed=1),),
        "The head is a linear layer on the last state: an unnormed read that feeds no write.",
    ),
    _case(
        "hidden_states",
        lambda: HiddenStatesModel(lambda: blocks.PreNormBlock(WIDTH)),
        (Expected(writes=2 * LAYERS, reads=3 * LAYERS + 1, unnormed=LAYERS),),
        "Each block's input, the root among them, is both normed by the block and returned raw: two reads.",
    ),
    _case(
        "deep",
        lambda: deep_toy(16),
        (Expected(writes=32, reads=33),),
        "Sixteen plain PreNorm blocks of two additions each.",
    ),
)

CASES: tuple[Case, ...] = (*ACCEPTED_CASES, *toy_declined.CASES)
