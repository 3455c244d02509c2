"""MERT: a HuBERT trained on music, at 24 kHz (Li et al., ICLR 2024; weights CC-BY-NC-4.0).

`m-a-p/MERT-v1-95M` (12 blocks, 768 dimensions, layer norms after) and `MERT-v1-330M` (24 blocks,
1024, layer norms before). The graph is HuBERT's: seven convolutions without bias from samples to 75
frames a second, the first with a group norm of one channel a group; a layer norm and projection; a
grouped convolution of 128 frames as positions; transformer blocks. It is written out here, and not
run through transformers, so that nothing beyond torch is needed, precision is ours to choose part
by part, and `HubertModel` is an independent witness in the tests.

Where the time goes, and what is done about it:
- Computation stops at the highest layer asked for (layer 7 of 95M: 42 % of the blocks saved).
- Convolutions run with channels last, as one matrix product over a strided view: in bfloat16 on a
  CPU six times as fast as `conv1d`.
- The first group norm is folded into its convolution: a channel's mean and variance over a window
  follow from the 10 x 10 covariance of the samples under the kernel (`_FirstLayer`).
- The weight norm of the positions is folded, q, k and v are one product.

Conventions: windows are (n, samples) float32 at 24 kHz, equally long, without mask: group norm
reaches over the whole window, padding included.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from reclass_plex.encoders.checkpoints import check_tensors, open_checkpoint, read_json
from reclass_plex.encoders.transformer import Block, choose_dtype, fill_network
from reclass_plex.encoders.windows import check_embeddings, check_windows, equal_windows
from reclass_plex.errors import ModelError, printable

RATE = 24_000  # Hz
WINDOW_SECONDS = 5.0  # as in training
LICENCE = "CC-BY-NC-4.0"
FILES = ("model.safetensors", "pytorch_model.bin")
GROUP_NORM_EPS = 1e-5
WINDOW_NORM_EPS = 1e-7

# What config.json may say otherwise for a HuBERT, but not for one that this module computes.
FIXED: Mapping[str, object] = {
    "conv_bias": False,
    "conv_pos_batch_norm": False,
    "deepnorm": False,
    "feat_extract_activation": "gelu",
    "feat_extract_norm": "group",
    "feat_proj_layer_norm": True,
    "feature_extractor_cqt": False,
    "hidden_act": "gelu",
    "sample_rate": RATE,
}


@dataclass(frozen=True)
class MertConfig:
    """The sizes of a MERT. The defaults are those of the 95M, and of HuBERT's configuration."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    conv_dim: tuple[int, ...] = (512,) * 7
    conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    num_conv_pos_embeddings: int = 128  # frames
    num_conv_pos_embedding_groups: int = 16
    do_stable_layer_norm: bool = False
    layer_norm_eps: float = 1e-5
    mask_time_prob: float = 0.05
    mask_feature_prob: float = 0.0

    @classmethod
    def parse(cls, content: Mapping[str, Any]) -> MertConfig:
        """Read the object of a config.json. Raises ValueError, naming the key."""
        for key, value in FIXED.items():
            if content.get(key, value) != value:
                raise ValueError(f"{key} is {content[key]!r}; only {value!r} is MERT's")
        values: dict[str, Any] = {}
        for key, default in cls.__dataclass_fields__.items():
            value = content.get(key, default.default)
            if isinstance(value, list):
                value = tuple(value)
            wanted = (int, float) if isinstance(default.default, float) else type(default.default)
            parts = value if isinstance(value, tuple) else (value,)
            if not isinstance(value, wanted) or not all(
                isinstance(part, (int, float)) and part >= 0 for part in parts
            ):
                raise ValueError(f"{key} is {value!r}")
            values[key] = value
        config = cls(**values)
        if not len(config.conv_dim) == len(config.conv_kernel) == len(config.conv_stride) > 1:
            raise ValueError("conv_dim, conv_kernel and conv_stride differ in length")
        for key in ("num_attention_heads", "num_conv_pos_embedding_groups"):
            if not values[key] or config.hidden_size % values[key]:
                raise ValueError(f"{key} is {values[key]}, and does not divide hidden_size")
        return config

    @property
    def shortest(self) -> int:
        """Samples that give one frame: 400 at the published sizes."""
        samples = 1
        for kernel, stride in zip(self.conv_kernel[::-1], self.conv_stride[::-1], strict=True):
            samples = (samples - 1) * stride + kernel
        return samples

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the names and shapes of the published checkpoint."""
        return dict(self._tensors())

    def _tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        width, wide = self.hidden_size, self.intermediate_size
        if self.mask_time_prob > 0 or self.mask_feature_prob > 0:
            yield "masked_spec_embed", (width,)  # of training, not computed with
        inputs = 1
        for i, (channels, kernel) in enumerate(zip(self.conv_dim, self.conv_kernel, strict=True)):
            yield f"feature_extractor.conv_layers.{i}.conv.weight", (channels, inputs, kernel)
            inputs = channels
        norms = {
            "feature_extractor.conv_layers.0.layer_norm": self.conv_dim[0],
            "feature_projection.layer_norm": inputs,
            "encoder.layer_norm": width,
        }
        dense = {"feature_projection.projection": (width, inputs)}
        for i in range(self.num_hidden_layers):
            layer = f"encoder.layers.{i}"
            norms |= {f"{layer}.layer_norm": width, f"{layer}.final_layer_norm": width}
            for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                dense[f"{layer}.attention.{part}"] = (width, width)
            dense[f"{layer}.feed_forward.intermediate_dense"] = (wide, width)
            dense[f"{layer}.feed_forward.output_dense"] = (width, wide)
        for name, channels in norms.items():
            yield f"{name}.weight", (channels,)
            yield f"{name}.bias", (channels,)
        for name, shape in dense.items():
            yield f"{name}.weight", shape
            yield f"{name}.bias", shape[:1]
        taps, groups = self.num_conv_pos_embeddings, self.num_conv_pos_embedding_groups
        yield "encoder.pos_conv_embed.conv.bias", (width,)
        yield "encoder.pos_conv_embed.conv.weight_g", (1, 1, taps)
        yield "encoder.pos_conv_embed.conv.weight_v", (width, width // groups, taps)


class _FirstLayer(nn.Module):
    """The first convolution with its group norm (one channel a group) and GELU, in float32.

    A channel is linear in the samples u under the kernel, y = w u, so that over a window its mean
    is w mean(u) and its variance w cov(u) w. The norm is then a scale of w and a bias, window by
    window, and two passes over the widest layer are saved. In float64, because the covariance of
    smooth audio nearly cancels under a kernel that differentiates.
    """

    def __init__(self, channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(channels, kernel))
        self.scale = nn.Parameter(torch.empty(channels))
        self.shift = nn.Parameter(torch.empty(channels))

    def forward(self, windows: Tensor) -> Tensor:
        """Map (n, samples) to (n, frames, channels)."""
        under = windows.unfold(1, self.weight.shape[1], self.stride)  # (n, frames, kernel)
        exact, weight = under.double(), self.weight.double()
        mean = exact.mean(1)  # (n, kernel)
        centred = exact - mean[:, None]
        covariance = centred.transpose(1, 2) @ centred / under.shape[1]
        variance = ((weight @ covariance) * weight).sum(2).clamp(min=0)  # (n, channels)
        scale = self.scale * torch.rsqrt(variance + GROUP_NORM_EPS)
        bias = self.shift - mean @ weight.T * scale
        weights = (weight * scale[..., None]).transpose(1, 2).float()  # (n, kernel, channels)
        return functional.gelu(torch.baddbmm(bias[:, None].float(), under, weights))


class _StridedLayer(nn.Module):
    """A convolution over frames, channels last, and GELU.

    The frames under the kernel lie side by side in memory, so it is one matrix product.
    """

    def __init__(self, inputs: int, channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.dense = nn.Linear(kernel * inputs, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, frames, inputs), contiguous, to (n, fewer frames, channels)."""
        n, frames, inputs = x.shape
        shape = (n, (frames - self.kernel) // self.stride + 1, self.kernel * inputs)
        under = x.as_strided(shape, (frames * inputs, self.stride * inputs, 1))
        return functional.gelu(self.dense(under))


class _Positions(nn.Module):
    """The grouped convolution over frames whose output is added as positions."""

    def __init__(self, width: int, taps: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, taps, padding=taps // 2, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, frames, width) to the same shape."""
        y = self.conv(x.transpose(1, 2).to(self.conv.weight.dtype))[:, :, : x.shape[1]]
        return functional.gelu(y).transpose(1, 2)


class MertNetwork(nn.Module):
    """The graph up to block `layers[-1]`: windows to the time-means of `layers`."""

    def __init__(self, config: MertConfig, layers: tuple[int, ...]) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.layers = layers
        self.pre_norm = config.do_stable_layer_norm
        sizes = list(zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True))
        self.first = _FirstLayer(*sizes[0])
        self.strided = nn.Sequential(
            *(_StridedLayer(config.conv_dim[i], *size) for i, size in enumerate(sizes[1:]))
        )
        self.projection_norm = nn.LayerNorm(config.conv_dim[-1], eps)
        self.projection = nn.Linear(config.conv_dim[-1], width)
        self.positions = _Positions(
            width, config.num_conv_pos_embeddings, config.num_conv_pos_embedding_groups
        )
        self.blocks = nn.ModuleList(
            Block(width, config.num_attention_heads, config.intermediate_size, eps, self.pre_norm)
            for _ in range(layers[-1])
        )
        # Before the first block, or after the last one: then only the last layer needs it.
        self.last = config.num_hidden_layers
        needed = not self.pre_norm or layers[-1] == self.last
        self.norm = nn.LayerNorm(width, eps) if needed else nn.Identity()

    def forward(self, windows: Tensor) -> Tensor:
        """Return (n, layers, width) float32 for windows (n, samples)."""
        stream = self._enter(windows)
        means = [stream.mean(1)] if 0 in self.layers else []
        for number, block in enumerate(self.blocks, 1):
            stream = block(stream)
            if number in self.layers:
                final = self.pre_norm and number == self.last
                means.append((self.norm(stream) if final else stream).mean(1))
        return torch.stack(means, 1)

    def tokens(self, windows: Tensor) -> Tensor:
        """Return what leaves block `layers[-1]`, (n, frames, width) float32, before a last norm."""
        stream = self._enter(windows)
        for block in self.blocks:
            stream = block(stream)
        return stream

    def _enter(self, windows: Tensor) -> Tensor:
        """Return what enters the first block."""
        if windows.is_cuda:
            stream = self._listen(windows)
        else:  # one at a time: the widest layers of a window fill 50 MB, and stay nearer to the CPU
            stream = torch.cat([self._listen(window[None]) for window in windows])
        stream = stream + self.positions(stream)
        entered: Tensor = stream if self.pre_norm else self.norm(stream)
        return entered

    def _listen(self, windows: Tensor) -> Tensor:
        """Return the frames (n, frames, width) float32 before positions."""
        variance, mean = torch.var_mean(windows, 1, correction=0, keepdim=True)
        x = self.first((windows - mean) * torch.rsqrt(variance + WINDOW_NORM_EPS))
        x = self.projection_norm(self.strided(x.to(self.projection.weight.dtype)).float())
        frames: Tensor = self.projection(x.to(self.projection.weight.dtype))
        return frames.float()


def network_tensors(
    tensors: Mapping[str, Tensor], config: MertConfig, depth: int
) -> dict[str, Tensor]:
    """Return published tensors, up to block `depth`, as `MertNetwork` names and shapes them."""
    found: dict[str, Tensor] = {}

    def take(target: str, *sources: str) -> None:
        for part in ("weight", "bias"):
            found[f"{target}.{part}"] = torch.cat([tensors[f"{s}.{part}"] for s in sources])

    extractor = "feature_extractor.conv_layers"
    found["first.weight"] = tensors[f"{extractor}.0.conv.weight"][:, 0]
    found["first.scale"] = tensors[f"{extractor}.0.layer_norm.weight"]
    found["first.shift"] = tensors[f"{extractor}.0.layer_norm.bias"]
    for i in range(1, len(config.conv_dim)):
        weight = tensors[f"{extractor}.{i}.conv.weight"]
        found[f"strided.{i - 1}.dense.weight"] = weight.transpose(1, 2).flatten(1)
    take("projection_norm", "feature_projection.layer_norm")
    take("projection", "feature_projection.projection")
    take("norm", "encoder.layer_norm")
    positions = "encoder.pos_conv_embed.conv"
    direction = tensors[f"{positions}.weight_v"].double()
    gain = tensors[f"{positions}.weight_g"].double()
    length = direction.norm(dim=(0, 1), keepdim=True)  # a weight norm over dimension 2, the taps
    found["positions.conv.weight"] = (gain * direction / length).float()
    found["positions.conv.bias"] = tensors[f"{positions}.bias"]
    for i in range(depth):
        source, target = f"encoder.layers.{i}", f"blocks.{i}"
        attention = [f"{source}.attention.{part}_proj" for part in ("q", "k", "v")]
        take(f"{target}.qkv", *attention)
        take(f"{target}.out", f"{source}.attention.out_proj")
        take(f"{target}.norm1", f"{source}.layer_norm")
        take(f"{target}.widen", f"{source}.feed_forward.intermediate_dense")
        take(f"{target}.narrow", f"{source}.feed_forward.output_dense")
        take(f"{target}.norm2", f"{source}.final_layer_norm")
    return found


class Mert:
    """A MERT of any size, ready to encode; see `Encoder`."""

    licence = LICENCE
    rate = RATE
    window_seconds = WINDOW_SECONDS

    def __init__(
        self,
        config: MertConfig,
        tensors: Mapping[str, Tensor],
        layers: tuple[int, ...],
        *,
        name: str = "mert-95m",
        device: str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> None:
        """Take the published tensors, already checked; `load_mert` says the rest."""
        if not layers or list(layers) != sorted(set(layers)):
            raise ValueError(f"layers are distinct and ascending, at least one: {layers}")
        if layers[0] < 0 or layers[-1] > config.num_hidden_layers:
            last = config.num_hidden_layers
            raise ModelError(f"{name} has the layers 0 to {last}; asked for are {layers}")
        self.name, self.device, self.layers = name, device, layers
        self.dtype = choose_dtype(device) if dtype is None else dtype
        self.dims = config.hidden_size
        self.shortest = config.shortest
        with torch.device("meta"):
            network = MertNetwork(config, layers)
        fill_network(network, network_tensors(tensors, config, layers[-1]), self.dtype, device)
        self.network: nn.Module = network

    def cut(self, samples: Tensor) -> Tensor:
        """Return windows (w, 120,000) of mono `samples` (n > 0,) at 24 kHz."""
        return equal_windows(samples, round(RATE * WINDOW_SECONDS))

    @torch.no_grad()
    def encode(self, windows: Tensor) -> Tensor:
        """Return the time-means (n, layers, dims) float32 of windows (n, samples).

        Each window is normalised by its own mean and deviation. Raises ValueError, ModelError.
        """
        check_windows(windows, self.shortest)
        states = self.network(windows.to(self.device, non_blocking=True))
        return check_embeddings(states, self.name, self.dtype)


def load_mert(
    folder: Path,
    layers: tuple[int, ...] = (7,),
    *,
    name: str = "mert-95m",
    device: str = "cpu",
    dtype: torch.dtype | None = None,
) -> Mert:
    """Load MERT from a folder that has config.json and model.safetensors or pytorch_model.bin.

    `layers` are hidden states as HuBERT numbers them: 0 enters the first block, i leaves block i,
    the last one is `last_hidden_state`. MARBLE reads 7 of the 95M, about 10 of the 330M for genre.
    `dtype` is that of the matrix products; None chooses it (`choose_dtype`). Raises ModelError,
    naming the file, if it is unreadable, or any name, shape or value is not as config.json implies.
    """
    config, tensors = read_checkpoint(folder)
    return Mert(config, tensors, layers, name=name, device=device, dtype=dtype)


def read_checkpoint(folder: Path) -> tuple[MertConfig, Mapping[str, Tensor]]:
    """Return the sizes and the published tensors, checked. Raises ModelError, naming the file."""
    config = read_config(folder)
    weights, tensors = open_checkpoint(folder, FILES)
    check_tensors(tensors, config.tensor_shapes(), weights)
    return config, tensors


def count_layers(folder: Path) -> int:
    """Return how many hidden states the MERT in `folder` has, 0 included. Raises ModelError."""
    return read_config(folder).num_hidden_layers + 1


def read_config(folder: Path) -> MertConfig:
    """Return the sizes of the MERT in `folder`. Raises ModelError, naming the file."""
    path = folder / "config.json"
    content = read_json(path)
    try:
        return MertConfig.parse(content)
    except ValueError as error:
        raise ModelError(f"{printable(path)}: {error}") from error
