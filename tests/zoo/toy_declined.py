"""Small models that are to be left alone, and the reason."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.zoo.case import Built, Case, Expected
from tests.zoo.toy_blocks import Attention, FeedForward

WIDTH = 32
VOCAB = 64
LAYERS = 3


class ResidualNet(nn.Module):
    """Pre-activation residual network: norm, activation, convolution, addition, on [B, C, H, W]."""

    def __init__(self, make_norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.branches = nn.ModuleList(
            nn.Sequential(make_norm(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)) for _ in range(LAYERS)
        )
        self.norm = make_norm(16)
        self.head = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for branch in self.branches:
            x = x + branch(x)
        return self.head(self.norm(x).mean((2, 3)))


class PlainMLP(nn.Module):
    """Norms and linear layers in a row, nothing added."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.GELU()) for _ in range(LAYERS))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class LSTMModel(nn.Module):
    """A cell stepped over the sequence; gates multiply its state at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, WIDTH)
        self.cell = nn.LSTMCell(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCAB)

    def forward(self, tokens: Tensor) -> Tensor:
        inputs = self.embedding(tokens)
        hidden = cell = inputs.new_zeros(tokens.shape[0], WIDTH)
        outputs = []
        for step in range(tokens.shape[1]):
            hidden, cell = self.cell(inputs[:, step], (hidden, cell))
            outputs.append(hidden)
        return self.head(torch.stack(outputs, dim=1))


class PostNormModel(nn.Module):
    """The norm acts on the sum, and its output is the next residual."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, WIDTH)
        self.attentions = nn.ModuleList(Attention(WIDTH) for _ in range(LAYERS))
        self.mlps = nn.ModuleList(FeedForward(WIDTH) for _ in range(LAYERS))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2 * LAYERS))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for layer, (attention, mlp) in enumerate(zip(self.attentions, self.mlps, strict=True)):
            x = self.norms[2 * layer](x + attention(x))
            x = self.norms[2 * layer + 1](x + mlp(x))
        return x


class UnnormedModel(nn.Module):
    """`x + mlp(x)`: every sublayer sees the raw state."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, WIDTH)
        self.mlps = nn.ModuleList(FeedForward(WIDTH) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for mlp in self.mlps:
            x = x + mlp(x)
        return self.norm(x)


class OneWriteModel(nn.Module):
    """A single residual addition."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, WIDTH)
        self.norm_1 = nn.LayerNorm(WIDTH)
        self.mlp = FeedForward(WIDTH)
        self.norm_2 = nn.LayerNorm(WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        x = x + self.mlp(self.norm_1(x))
        return self.norm_2(x)


class IntegerModel(nn.Module):
    """Token ids that are moved by a looked-up step, three times, before they are embedded."""

    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.randint(0, 3, (VOCAB,)))
        self.embedding = nn.Embedding(VOCAB, WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        for _ in range(3):
            tokens = tokens + self.steps[tokens % VOCAB]
        return self.embedding(tokens % VOCAB)


def _tokens() -> tuple:
    return (torch.randint(0, VOCAB, (2, 12)),)


def _case(
    name: str,
    make_model: Callable[[], nn.Module],
    reason: str,
    why: str,
    inputs: Callable[[], tuple] = _tokens,
    streams: tuple[Expected, ...] = (),
) -> Case:
    def build() -> Built:
        torch.manual_seed(0)
        return make_model().eval(), inputs(), {}

    return Case(f"toy_{name}", build, streams, reason, why)


CASES: tuple[Case, ...] = (
    _case(
        "resnet",
        lambda: ResidualNet(nn.BatchNorm2d),
        "channels_first",
        "Three additions to a [B, C, H, W] state; batch norm in evaluation uses stored statistics, so it "
        "norms nothing.",
        lambda: (torch.randn(2, 3, 16, 16),),
    ),
    _case(
        "resnet_group_norm",
        lambda: ResidualNet(lambda channels: nn.GroupNorm(4, channels)),
        "channels_first",
        "As resnet with a norm that does norm; only the layout speaks against it.",
        lambda: (torch.randn(2, 3, 16, 16),),
    ),
    _case(
        "mlp",
        PlainMLP,
        "no_residual",
        "No addition of activations anywhere.",
        lambda: (torch.randn(2, 12, WIDTH),),
    ),
    _case(
        "lstm",
        LSTMModel,
        "gated",
        "The cell's state is multiplied by a gate before each addition, so no state is a term of the next.",
    ),
    _case(
        "post_norm",
        PostNormModel,
        "post_norm",
        "`x = norm(x + f(x))`: each sum is read by its norm alone, whose output is the next residual.",
    ),
    _case(
        "unnormed_read",
        UnnormedModel,
        "unnormed_read",
        "Three writes whose branches read the state itself; only the final norm is a normed read.",
        streams=(Expected(writes=LAYERS, reads=LAYERS + 1, unnormed=LAYERS),),
    ),
    _case("one_write", OneWriteModel, "too_few_writes", "One addition."),
    _case(
        "integer_stream",
        IntegerModel,
        "non_floating",
        "Three additions that each depend on the state before, but on integers.",
    ),
)
