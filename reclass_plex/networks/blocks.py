"""The top blocks of MERT or JMLA with a head: what fine-tuning changes of them.

The blocks below are frozen, so what leaves them is computed once, by `extract`, and read here. The
head reads the mean over time of every block's output, and of what enters the first, in learned
shares, as the heads on frozen encoders do.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from reclass_plex.encoders.top import Top
from reclass_plex.encoders.transformer import Block
from reclass_plex.errors import ModelError, printable
from reclass_plex.networks import BlocksSpec


class BlocksNetwork(nn.Module):
    """Blocks, learned shares of their means, a norm without weights of its own, a linear layer."""

    def __init__(self, spec: BlocksSpec, classes: int) -> None:
        super().__init__()
        self.skipped = spec.skipped
        width = spec.bands
        self.blocks = nn.ModuleList(
            Block(width, spec.heads, spec.feedforward, spec.eps, spec.pre_norm)
            for _ in range(spec.depth)
        )
        self.norm = nn.LayerNorm(width, spec.eps) if spec.norm else nn.Identity()
        self.scores = nn.Parameter(torch.zeros(spec.depth + 1))
        self.dropout = nn.Dropout(0.0)
        self.head = nn.Linear(width, classes)

    def forward(self, windows: Tensor) -> Tensor:
        """Return logits (n, classes) for tokens (n, frames, width)."""
        stream = windows
        means = [self._mean(stream)]
        for number, block in enumerate(self.blocks, 1):
            stream = block(stream)
            last = number == len(self.blocks)
            means.append(self._mean(self.norm(stream) if last else stream))
        # States of different blocks differ in scale by far; each is brought to the same first.
        states = [functional.layer_norm(mean.float(), mean.shape[1:]) for mean in means]
        shares = torch.softmax(self.scores, 0)
        mixed = (torch.stack(states, 1) * shares[:, None]).sum(1)
        logits: Tensor = self.head(self.dropout(mixed))
        return logits

    def _mean(self, stream: Tensor) -> Tensor:
        return stream[:, self.skipped :].mean(1)

    def fresh(self) -> Iterable[nn.Parameter]:
        """Return the parameters of the head, and the shares."""
        return chain(self.head.parameters(), [self.scores])


def published_blocks(top: Top, folder: Path, dims: int) -> tuple[BlocksSpec, dict[str, Tensor]]:
    """Return the spec of a network on an encoder's last blocks, and their tensors.

    `dims` are the numbers of a window that was extracted. Raises ModelError, naming the folder.
    """
    from reclass_plex.encoders import jmla, mert

    if top.kind == "mert":
        config, tensors = mert.read_checkpoint(folder)
        depth, width = config.num_hidden_layers, config.hidden_size
        heads, feedforward = config.num_attention_heads, config.intermediate_size
        eps, pre_norm, skipped = config.layer_norm_eps, config.do_stable_layer_norm, 0
        named = mert.network_tensors(tensors, config, depth)
    else:
        vit, tensors = jmla.read_checkpoint(folder)
        depth, width = vit.depth, vit.width
        heads, feedforward = vit.heads, vit.feedforward
        eps, pre_norm, skipped = jmla.EPS, True, 1
        named = jmla.network_tensors(tensors, vit)
    if depth < top.depth or dims % width:
        raise ModelError(
            f"{printable(folder)}: has {depth} blocks of {width} numbers a token; the features are"
            f" of {top.depth} blocks and {dims} numbers a window"
        )
    spec = BlocksSpec(
        frames=dims // width, bands=width, depth=top.depth, heads=heads, feedforward=feedforward,
        eps=eps, pre_norm=pre_norm, norm=pre_norm, skipped=skipped,
    )  # fmt: skip
    below = depth - top.depth
    found = {
        name.replace(f"blocks.{below + i}.", f"blocks.{i}.", 1): tensor.float()
        for i in range(top.depth)
        for name, tensor in named.items()
        if name.startswith(f"blocks.{below + i}.")
    }
    if pre_norm:
        found |= {f"norm.{part}": named[f"norm.{part}"].float() for part in ("weight", "bias")}
    return spec, found
