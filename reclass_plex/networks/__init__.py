"""Networks that hear more than a vector: a window's spectrogram, or an encoder's hidden states.

A spec says, as data, which network it is; with it and its tensors a head is complete. Training
builds them with gradients, `heads` asks them. One file each; all of them take (n, frames, bands)
float32 and give logits (n, classes).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from torch import Tensor, nn

AT_ONCE = 32  # windows: what lies between two layers is far larger than what enters

Size = Annotated[int, Field(gt=0, le=100_000)]


class _Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    frames: Size
    bands: Size

    @property
    def dims(self) -> int:
        """Numbers of a window."""
        return self.frames * self.bands


class ResnetSpec(_Spec):
    """A residual network on a log-mel spectrogram (`resnet`)."""

    architecture: Literal["resnet"] = "resnet"
    width: Annotated[int, Field(gt=0, le=1024)] = 24  # channels of its first stage
    stages: Annotated[int, Field(gt=0, le=6)] = 4

    def build(self, classes: int) -> GenreNetwork:
        """Return the network with fresh weights."""
        from reclass_plex.networks.resnet import Resnet

        return Resnet(self, classes)


class MusicnnSpec(_Spec):
    """MusiCNN's graph with a head of its own (`musicnn`).

    `live` are the filters of the five front-end branches that are not dead, for each checkpoint
    that it began as.
    """

    architecture: Literal["musicnn"] = "musicnn"
    live: Annotated[
        tuple[Annotated[tuple[int, ...], Field(min_length=5, max_length=5)], ...],
        Field(min_length=1, max_length=2),
    ]

    def build(self, classes: int) -> GenreNetwork:
        """Return the network with fresh weights."""
        from reclass_plex.networks.musicnn import MusicnnNetwork

        return MusicnnNetwork(self, classes)


class BlocksSpec(_Spec):
    """The top blocks of a transformer, on what enters the lowest of them (`blocks`).

    `frames` are tokens, of which the first `skipped` are not heard (a class token); `bands` is the
    width. `norm`: there is one after the last block.
    """

    architecture: Literal["blocks"] = "blocks"
    depth: Annotated[int, Field(gt=0, le=100)]
    heads: Size
    feedforward: Size
    eps: Annotated[float, Field(gt=0)]
    pre_norm: bool
    norm: bool
    skipped: Annotated[int, Field(ge=0)] = 0

    def build(self, classes: int) -> GenreNetwork:
        """Return the network with fresh weights."""
        from reclass_plex.networks.blocks import BlocksNetwork

        return BlocksNetwork(self, classes)


NetworkSpec = Annotated[ResnetSpec | MusicnnSpec | BlocksSpec, Field(discriminator="architecture")]


_SPECS: TypeAdapter[NetworkSpec] = TypeAdapter(NetworkSpec)


class GenreNetwork(Protocol):
    """What specs build: an nn.Module whose new part and grown part are known."""

    def __call__(self, windows: Tensor) -> Tensor:
        """Return logits (n, classes) for windows (n, frames, bands)."""
        ...

    def fresh(self) -> Iterable[nn.Parameter]:
        """Yield the parameters that nothing was learned for yet: of the head on top."""
        ...


def parse_spec(content: object) -> NetworkSpec:
    """Return the spec that `model_dump` told. Raises ValueError."""
    return _SPECS.validate_python(content)


def as_module(network: GenreNetwork) -> nn.Module:
    """Return the same object, which is a module."""
    if not isinstance(network, nn.Module):
        raise TypeError("a network is a module")
    return network


def tensor_shapes(spec: NetworkSpec, classes: int) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a network's tensors, which take no memory for it."""
    with torch.device("meta"):
        state = as_module(spec.build(classes)).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def restore_network(spec: NetworkSpec, classes: int, tensors: dict[str, Tensor]) -> nn.Module:
    """Return the network with these tensors, on the CPU, ready to be asked."""
    with torch.device("meta"):
        network = as_module(spec.build(classes))
    network.load_state_dict(tensors, strict=True, assign=True)
    return network.eval().requires_grad_(False)


@torch.no_grad()
def ask_network(network: nn.Module, spec: NetworkSpec, rows: Tensor) -> Tensor:
    """Return logits (n, classes) for flat rows (n, dims), a few at a time."""
    parts = torch.split(rows.view(len(rows), spec.frames, spec.bands), AT_ONCE)
    return torch.cat([network(part.float()) for part in parts])
