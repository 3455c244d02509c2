"""The lower part of MERT or JMLA: what fine-tuning of its top blocks leaves as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reclass_plex.encoders.top import Top
from reclass_plex.encoders.windows import check_embeddings, check_windows
from reclass_plex.errors import ModelError, printable


class LowerPart:
    """An encoder that stops below its last blocks, and gives all tokens."""

    def __init__(self, top: Top, folder: Path, device: str, dtype: torch.dtype) -> None:
        """Load it from the encoder's folder. Raises ModelError, naming it."""
        from reclass_plex.encoders import jmla, mert

        self._name, self._dtype = folder.name, dtype
        self.device = device
        if top.kind == "mert":
            below = _below(top, mert.read_config(folder).num_hidden_layers, folder)
            heard = mert.load_mert(folder, (below,), name=top.model, device=device, dtype=dtype)
            self.cut, self._shortest = heard.cut, heard.shortest
            lower: Any = heard.network
            self._tokens: Callable[[Tensor], Tensor] = lower.tokens
        else:
            below = _below(top, jmla.read_sizes(folder).depth, folder)
            other = jmla.load_jmla(folder, device=device, dtype=dtype)
            self.cut, self._shortest = other.cut, jmla.N_FFT // 2 + 1
            network: Any = other.network
            self._tokens = lambda windows: network.tokens(jmla.log_mel(windows), below)

    @torch.no_grad()
    def encode(self, windows: Tensor) -> Tensor:
        """Return (n, tokens, width) float32 of windows (n, samples). Raises as `Encoder.encode`."""
        check_windows(windows, self._shortest)
        states: Tensor = self._tokens(windows.to(self.device, non_blocking=True))
        return check_embeddings(states.float(), self._name, self._dtype)


def _below(top: Top, blocks: int, folder: Path) -> int:
    if top.depth > blocks:
        raise ModelError(f"{printable(folder)}: has {blocks} blocks, and {top.depth} are to learn")
    return blocks - top.depth
