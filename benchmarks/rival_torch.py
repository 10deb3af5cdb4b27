"""The default decoder and its training step in plain PyTorch, as one who knows it writes them for this one model.

One matrix for queries, keys and values, its fused attention and AdamW, rows without weight ignored by its
cross-entropy, eager or under `torch.compile`. Imported only where PyTorch is installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from positionbias.config import schema

IGNORED = -100  # what PyTorch's cross-entropy leaves out
EPSILON = 1e-6  # of layer norm
# Our names of the parameters of a layer, by those of `Layer`; matrices are transposed, and may be made of several.
LAYER = {
    "norm_attention.weight": ("norm_attention.scale",),
    "norm_attention.bias": ("norm_attention.shift",),
    "queries_keys_values.weight": ("attention.query.weight", "attention.key.weight", "attention.value.weight"),
    "output.weight": ("attention.output.weight",),
    "norm_mlp.weight": ("norm_mlp.scale",),
    "norm_mlp.bias": ("norm_mlp.shift",),
    "first.weight": ("mlp.first.weight",),
    "second.weight": ("mlp.second.weight",),
}


class Layer(nn.Module):
    """Causal attention and an MLP, layer norm before each."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width, EPSILON)
        self.queries_keys_values = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.norm_mlp = nn.LayerNorm(width, EPSILON)
        self.first = nn.Linear(width, 4 * width, bias=False)
        self.second = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The stream [B, T, D] behind the layer."""
        made = self.queries_keys_values(self.norm_attention(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = made.permute(2, 0, 3, 1, 4)  # [B, N, T, H] each
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.output(mixed.transpose(1, 2).flatten(2))
        return x + self.second(functional.gelu(self.first(self.norm_mlp(x)), approximate="tanh"))


class Decoder(nn.Module):
    """Tokens and learned positions, layers, a last norm and a matrix."""

    def __init__(self, model: schema.Model, vocabulary: int, outputs: int, length: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, model.width)
        self.positions = nn.Embedding(length, model.width)
        self.layers = nn.ModuleList([Layer(model.width, model.heads) for _ in range(model.layers)])
        self.norm = nn.LayerNorm(model.width, EPSILON)
        self.readout = nn.Linear(model.width, outputs, bias=False)

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The mean loss of the rows whose target is not ignored."""
        x = self.tokens(inputs) + self.positions.weight[: inputs.shape[1]]
        for layer in self.layers:
            x = layer(x)
        logits = self.readout(self.norm(x))
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


class Torch:
    """The model in training, from our parameters by name, on batches of which arrays are [K, B, T]."""

    def __init__(self, config: schema.Config, params: Mapping[str, np.ndarray], batches: Any, compiles: bool) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        sizes = params["embedding.table"].shape[0], params["readout.last.weight"].shape[1]
        self._model = Decoder(config.model, *sizes, len(params["embedding.params.table"])).to(self._device)
        self._names = _names(config.model.layers)
        with torch.no_grad():
            for name, param in self._model.named_parameters():
                parts = [params[one].T if _turned(name) else params[one] for one in self._names[name]]
                param.copy_(torch.from_numpy(np.concatenate(parts)))
        self._loss = torch.compile(self._model, dynamic=False) if compiles else self._model
        rate = config.optimizer.learning_rate
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=rate, weight_decay=0.0, fused=True)
        inputs, targets = np.asarray(batches.inputs, np.int64), np.asarray(batches.targets, np.int64)
        ignored = np.where(np.asarray(batches.weights) > 0, targets, IGNORED)
        pairs = zip(inputs, ignored, strict=True)
        self._batches = [tuple(torch.tensor(x, device=self._device) for x in pair) for pair in pairs]
        self.memory = None

    def gradient(self) -> dict[str, np.ndarray]:
        """Of the first batch, by our names."""
        self._optimizer.zero_grad(set_to_none=True)
        self._loss(*self._batches[0]).backward()
        found = {}
        for name, param in self._model.named_parameters():
            assert param.grad is not None
            parts = np.split(param.grad.cpu().numpy(), len(self._names[name]))
            found |= {one: x.T if _turned(name) else x for one, x in zip(self._names[name], parts, strict=True)}
        return found

    def call(self) -> list[torch.Tensor]:
        """A step for each batch; the losses."""
        losses = []
        for batch in self._batches:
            loss = self._loss(*batch)
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self._optimizer.step()
            losses.append(loss.detach())
        return losses

    def wait(self, made: list[torch.Tensor]) -> np.ndarray:
        """The losses, once they are there."""
        return torch.stack(made).cpu().numpy()


def _turned(name: str) -> bool:
    """Whether PyTorch has a matrix as [out, in]."""
    return name.endswith(("values.weight", "output.weight", "first.weight", "second.weight", "readout.weight"))


def _names(layers: int) -> dict[str, tuple[str, ...]]:
    """Our names of what each parameter is made of."""
    found: dict[str, tuple[str, ...]] = {
        "tokens.weight": ("embedding.table",),
        "positions.weight": ("embedding.params.table",),
        "norm.weight": ("stack.norm.scale",),
        "norm.bias": ("stack.norm.shift",),
        "readout.weight": ("readout.last.weight",),
    }
    for i in range(layers):
        found |= {f"layers.{i}.{name}": tuple(f"stack.blocks.{i}.{x}" for x in ours) for name, ours in LAYER.items()}
    return found
