"""The transformer block that MERT and JMLA share, and in which precision it computes.

Matrix products run in the precision of their weights. What is sensitive stays in float32: layer
norms, the residual stream, means; as under torch.autocast, but without casting the weights anew in
every call.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

NARROW = (nn.Linear, nn.Conv1d)  # modules whose weights are in the precision that is chosen
BF16_PAYS = 1.5  # times as fast as float32, or its rounding is not worth it


class Block(nn.Module):
    """Self-attention and two dense layers, with layer norms before (`pre_norm`) or after them."""

    def __init__(
        self, width: int, heads: int, feedforward: int, eps: float, pre_norm: bool
    ) -> None:
        super().__init__()
        self.heads, self.pre_norm = heads, pre_norm
        self.norm1 = nn.LayerNorm(width, eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps)
        self.widen = nn.Linear(width, feedforward)
        self.narrow = nn.Linear(feedforward, width)

    def forward(self, stream: Tensor) -> Tensor:
        """Map the residual stream (n, tokens, width) float32 to the next block's."""
        if self.pre_norm:
            stream = stream + self._attend(self.norm1(stream))
            return stream + self._feed_forward(self.norm2(stream))
        stream = self.norm1(stream + self._attend(stream))
        normed: Tensor = self.norm2(stream + self._feed_forward(stream))
        return normed

    def _attend(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        qkv = self.qkv(x.to(self.qkv.weight.dtype))
        query, key, value = qkv.view(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        attended: Tensor = self.out(mixed.transpose(1, 2).reshape(n, tokens, width))
        return attended

    def _feed_forward(self, x: Tensor) -> Tensor:
        wide = functional.gelu(self.widen(x.to(self.widen.weight.dtype)))
        narrowed: Tensor = self.narrow(wide)
        return narrowed


def narrow_weights(network: nn.Module, dtype: torch.dtype) -> None:
    """Give a network on the meta device the types that `fill_network` gives it."""
    for module in network.modules():
        if isinstance(module, NARROW):
            module.to(dtype)


def fill_network(
    network: nn.Module, tensors: Mapping[str, Tensor], dtype: torch.dtype, device: str
) -> None:
    """Give a network on the meta device its weights: copies, without gradients, on `device`.

    Dense layers and convolutions hold `dtype`, everything else (norms, tokens) float32. Tensors
    that the network has no place for are left out.
    """
    narrow = {
        f"{name}.{part}"
        for name, module in network.named_modules()
        if isinstance(module, NARROW)
        for part in ("weight", "bias")
    }
    state = {
        name: tensors[name].to(device, dtype if name in narrow else torch.float32, copy=True)
        for name in network.state_dict()
    }
    network.load_state_dict(state, strict=True, assign=True)
    network.eval().requires_grad_(False)


def choose_dtype(device: str) -> torch.dtype:
    """Return the precision of matrix products in which `device` is fastest and sane.

    On a GPU bfloat16, or float16 before Ampere (compute capability 8). On a CPU float32, or
    bfloat16 where this very machine multiplies matrices faster in it, measured once a process.
    """
    if torch.device(device).type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return torch.bfloat16 if major >= 8 else torch.float16
    return torch.bfloat16 if _cpu_gain() >= BF16_PAYS else torch.float32


@functools.cache
def _cpu_gain() -> float:
    """Return how many times as fast bfloat16 is as float32, on a product like a block's (20 ms)."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        x, weight = torch.ones(374, 768, dtype=dtype), torch.ones(3072, 768, dtype=dtype)
        functional.linear(x, weight)
        rounds = []
        for _ in range(3):
            start = time.perf_counter()
            functional.linear(x, weight)
            rounds.append(time.perf_counter() - start)
        seconds[dtype] = min(rounds)
    return seconds[torch.float32] / seconds[torch.bfloat16]
