"""MusiCNN as a network that learns on: the graph of `encoders.musicnn`, plainly written.

What makes that one fast has no use where weights change, so this is the graph as it was published,
but for its dead filters: they are constants, folded into what reads them. Its batch norms are the
scales and shifts that they were at the end of its training (what few songs have for a mean and
variance would be worth less), and learn on as such. On top is a head of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from reclass_plex.encoders.musicnn import (
    BATCH_NORM_EPS,
    DEAD_BELOW,
    LOUDEST_LOG_MEL,
    N_MELS,
    PATCH_FRAMES,
    Checkpoint,
    FrozenFront,
)
from reclass_plex.models import DATA, load_tensors
from reclass_plex.networks import MusicnnSpec

KERNELS = ((7, 38), (7, 67), (128, 1), (64, 1), (32, 1))  # frames x bands
MID, PENULTIMATE = 64, 200


class MusicnnNetwork(nn.Module):
    """One body for each checkpoint, and one head on the penultimate layers of all."""

    def __init__(self, spec: MusicnnSpec, classes: int) -> None:
        super().__init__()
        self.bodies = nn.ModuleList(_Body(live) for live in spec.live)
        self.dropout = nn.Dropout(0.0)
        self.head = nn.Linear(PENULTIMATE * len(spec.live), classes)

    def forward(self, windows: Tensor) -> Tensor:
        """Return logits (n, classes) for log-mel patches (n, 187, 96)."""
        logits: Tensor = self.head(self.dropout(self.penultimate(windows)))
        return logits

    def penultimate(self, windows: Tensor) -> Tensor:
        """Return (n, 200 for each body)."""
        return torch.cat([body(windows) for body in self.bodies], 1)

    def fresh(self) -> Iterable[nn.Parameter]:
        """Return the parameters of the head."""
        return self.head.parameters()

    def freeze_front(self) -> None:
        """Keep the front ends as they are, which are nearly all of the work.

        On the CPU they are then computed the fast way of `encoders.musicnn`.
        """
        for body in self.bodies:
            if isinstance(body, _Body):
                body.freeze_front()


class _Body(nn.Module):
    input_norm: Tensor

    def __init__(self, live: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("input_norm", torch.tensor([1.0, 0.0]))
        pairs = zip(KERNELS, live, strict=True)
        self.branches = nn.ModuleList(_Branch(kernel, count) for kernel, count in pairs if count)
        self.mid = nn.ModuleList(_Mid(inputs) for inputs in (sum(live), MID, MID))
        self.dense = nn.Linear(2 * (sum(live) + 3 * MID), PENULTIMATE)
        self.scale = nn.Parameter(torch.ones(PENULTIMATE))
        self.shift = nn.Parameter(torch.zeros(PENULTIMATE))
        self.fast: Callable[[Tensor], Tensor] | None = None

    def freeze_front(self) -> None:
        """See `MusicnnNetwork`."""
        self.branches.requires_grad_(False)
        if self.scale.device.type == "cpu":
            parts = [branch for branch in self.branches if isinstance(branch, _Branch)]
            self.fast = FrozenFront(
                [branch.kernel() for branch in parts], [branch.norm() for branch in parts]
            )

    def forward(self, patches: Tensor) -> Tensor:
        """Return the penultimate layer (n, 200)."""
        x = patches * self.input_norm[0] + self.input_norm[1]
        if self.fast is not None:
            front = self.fast(x)
        else:
            front = torch.cat([branch(x[:, None]) for branch in self.branches], 1)
        first = self.mid[0](front)
        second = self.mid[1](first) + first
        third = self.mid[2](second) + second
        layers = torch.cat([front, first, second, third], 1)
        pooled = torch.cat([layers.amax(2), layers.mean(2)], 1)
        return torch.relu(self.dense(pooled)) * self.scale + self.shift


class _Branch(nn.Module):
    """A convolution over frames and bands, and its maximum over the bands.

    ReLU and norm come after the maximum, as in `encoders.musicnn`; `sign` (-1 where the norm turned
    the maximum to a minimum) is part of the graph and stays.
    """

    sign: Tensor

    def __init__(self, kernel: tuple[int, int], filters: int) -> None:
        super().__init__()
        self.before = (kernel[0] - 1) // 2  # frames of zeros; after it one more, if it is even
        self.after = kernel[0] - 1 - self.before
        self.conv = nn.Conv2d(1, filters, kernel)
        self.register_buffer("sign", torch.ones(filters))
        self.scale = nn.Parameter(torch.ones(filters))
        self.shift = nn.Parameter(torch.zeros(filters))

    def kernel(self) -> Tensor:
        """Return (frames, bands, filters)."""
        return self.conv.weight[:, 0].permute(1, 2, 0)

    def norm(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return scale, shift, bias and sign, (filters,) each."""
        bias = torch.zeros_like(self.scale) if self.conv.bias is None else self.conv.bias
        return self.scale, self.shift, bias, self.sign

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, 1, frames, bands) to (n, filters, frames)."""
        maximum = self.conv(functional.pad(x, (0, 0, self.before, self.after))).amax(3)
        y = torch.relu(maximum * self.sign[:, None])
        return y * self.scale[:, None] + self.shift[:, None]


class _Mid(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(MID, inputs, 7))
        nn.init.kaiming_uniform_(self.weight)
        # For each frame, since the dead filters' constants end where the padding begins.
        self.bias = nn.Parameter(torch.zeros(MID, PATCH_FRAMES))
        self.scale = nn.Parameter(torch.ones(MID))
        self.shift = nn.Parameter(torch.zeros(MID))

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, frames) to (n, 64, frames)."""
        y = torch.relu(functional.conv1d(x, self.weight, padding=3) + self.bias)
        return y * self.scale[:, None] + self.shift[:, None]


def published_bodies(checkpoints: tuple[Checkpoint, ...]) -> tuple[MusicnnSpec, dict[str, Tensor]]:
    """Return the spec of a network on the bundled checkpoints, and the tensors of its bodies.

    Raises ModelError, naming the file, if it is missing or damaged.
    """
    lives: list[tuple[int, ...]] = []
    tensors: dict[str, Tensor] = {}
    for number, checkpoint in enumerate(checkpoints):
        live, body = _convert(load_tensors(DATA / "musicnn" / f"{checkpoint}.safetensors"))
        lives.append(live)
        tensors |= {f"bodies.{number}.{name}": tensor for name, tensor in body.items()}
    return MusicnnSpec(frames=PATCH_FRAMES, bands=N_MELS, live=tuple(lives)), tensors


def _convert(weights: Mapping[str, Tensor]) -> tuple[tuple[int, ...], dict[str, Tensor]]:
    """Return the live filters of each branch, and a `_Body`'s tensors, from published ones."""

    def norm(index: int) -> tuple[Tensor, Tensor]:
        key = "batch_normalization" + (f"_{index}" if index else "")
        variance = weights[f"{key}/moving_variance"] + BATCH_NORM_EPS
        scale = weights[f"{key}/gamma"] * torch.rsqrt(variance)
        return scale, weights[f"{key}/beta"] - weights[f"{key}/moving_mean"] * scale

    def layer(index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        key = "conv2d" + (f"_{index}" if index else "")
        return weights[f"{key}/kernel"][:, :, 0], weights[f"{key}/bias"], *norm(index + 1)

    input_scale, input_shift = norm(0)
    found = {"input_norm": torch.cat([input_scale, input_shift])}
    loudest = (input_scale * LOUDEST_LOG_MEL).abs() + input_shift.abs()
    counts: list[int] = []
    living, constants = [], []
    for i in range(len(KERNELS)):
        kernel, bias, scale, shift = layer(i)
        live = kernel.abs().sum((0, 1)) * scale.abs() * loudest > DEAD_BELOW
        sign = torch.where(scale[live] < 0, -1.0, 1.0)
        if live.any():
            branch = f"branches.{sum(count > 0 for count in counts)}"
            signed = (kernel[..., live] * sign).permute(2, 0, 1)
            found[f"{branch}.conv.weight"] = signed[:, None]
            found[f"{branch}.conv.bias"] = bias[live] * sign
            found |= {f"{branch}.sign": sign, f"{branch}.scale": scale[live]}
            found[f"{branch}.shift"] = shift[live]
        counts.append(int(live.sum()))
        living.append(live)
        constants.append(torch.where(live, 0, torch.relu(bias) * scale + shift))
    alive, constant = torch.cat(living), torch.cat(constants)
    for i in range(3):
        kernel, bias, scale, shift = layer(5 + i)
        weight = kernel.permute(2, 1, 0)  # (64, inputs, 7)
        rest = torch.zeros(MID)
        if i == 0:
            rest = constant
        image = rest[:, None].expand(-1, PATCH_FRAMES)
        found[f"mid.{i}.bias"] = functional.conv1d(image, weight, bias, padding=3)
        found[f"mid.{i}.weight"] = weight[:, alive] if i == 0 else weight
        found |= {f"mid.{i}.scale": scale, f"mid.{i}.shift": shift}
    scale, shift = norm(9)  # before the dense layer, whose inputs are max 0, mean 0, max 1, ...
    kernel = weights["dense/kernel"]
    pairs = (kernel * scale[:, None]).view(-1, 2, PENULTIMATE)
    kept = torch.cat([alive, torch.ones(3 * MID, dtype=torch.bool)])
    found["dense.weight"] = torch.cat([pairs[kept, 0], pairs[kept, 1]]).T
    folded = constant[~alive] @ pairs[: len(alive)][~alive].sum(1)
    found["dense.bias"] = weights["dense/bias"] + shift @ kernel + folded
    found["scale"], found["shift"] = norm(10)
    return tuple(counts), {name: tensor.float().contiguous() for name, tensor in found.items()}
