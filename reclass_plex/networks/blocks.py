"""The top blocks of MERT or JMLA with a head: what fine-tuning changes of them.

The blocks below are frozen, so what leaves them is computed once, by `extract`, and read here. The
head reads the mean over time of every block's output, and of what enters the first, in learned
shares, as the heads on frozen encoders do.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional

from reclass_plex.encoders.transformer import Block
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
