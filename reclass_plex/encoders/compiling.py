"""torch.compile for the encoders that are written out here, where it works.

It joins the steps between the matrix products (norms, activations, casts) into fewer passes over
memory. It needs a GPU, Triton (which NVIDIA's torch for the Jetson may lack) and a C compiler, and
up to minutes for the first batch, so it is an option, and what fails is computed as before.

CUDA graphs are no option: torch's are bound to the thread that recorded them, and there is little
to win. A batch of MERT is some 300 kernels, 2 ms of launching, beside 15 ms of work for a batch of
64 windows at 350 TFLOP/s, and 65 ms for six at 10.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from reclass_plex.encoders import Encoder
from reclass_plex.encoders.jmla import Jmla
from reclass_plex.encoders.mert import Mert

log = logging.getLogger(__name__)


class CompiledNetwork(nn.Module):
    """A network that is compiled with its first batch, and computes as it was written if not."""

    def __init__(
        self, network: nn.Module, name: str, backend: str | Callable[..., Any] = "inductor"
    ) -> None:
        super().__init__()
        self.network = network
        self._name = name
        self._backend = backend
        self._quick: Callable[..., Any] | None = None
        self._failed = False

    @property
    def is_compiled(self) -> bool:
        """Whether it has been compiled."""
        return self._quick is not None and not self._failed

    def forward(self, windows: Tensor) -> Tensor:
        """Return what the network makes of `windows`."""
        if not self._failed:
            try:
                return self._run(windows)
            except torch.cuda.OutOfMemoryError:
                raise  # a smaller batch may do
            except Exception as error:  # which ones a compiler raises is not documented
                reason = str(error).strip().partition("\n")[0]
                log.warning("%s is not compiled, and computes as before: %s", self._name, reason)
                self._failed = True
        plain: Tensor = self.network(windows)
        return plain

    def _run(self, windows: Tensor) -> Tensor:
        if self._quick is None:
            # dynamic: one compilation for all batch sizes
            self._quick = torch.compile(self.network, dynamic=True, backend=self._backend)
        result: Tensor = self._quick(windows)
        return result


def compiled(encoder: Encoder) -> Encoder:
    """Let `encoder` run a compiled network, from its next batch on; return it.

    Only MERT and JMLA, and only on a GPU: any other encoder is returned as it is.
    """
    if torch.device(encoder.device).type == "cuda" and isinstance(encoder, Mert | Jmla):
        encoder.network = CompiledNetwork(encoder.network, encoder.name)
    return encoder
