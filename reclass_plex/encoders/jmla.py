"""OpenJMLA's audio backbone: a ViT-B over 30 s of log-mel spectrogram, at 16 kHz.

`UniMus/OpenJMLA`, `epoch_20.pth`; Du et al., *Joint Music and Language Attention Models for
Zero-shot Music Tagging*, arXiv 2310.10159. The licence says only "cc", so it is never shipped.

An image of 80 mel bands x 2992 frames is cut into 5 x 187 patches of 16 x 16; with a class token
before them, 936 tokens pass twelve blocks with layer norms before, and a final norm. Token
1 + 187 r + c is row r (low frequencies first), column c. Upstream defines no embedding of a track:
ours is the mean of the patch tokens after the final norm, or the class token, or both
(`Readout.pooling`), recorded in the head's card.

The published patch weights have three input channels, all fed the same image: their sum over the
channels is the one channel used here.

Conventions: windows are (n, samples) float32 at 16 kHz; images (n, 80, 2992) float32.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reclass_plex.encoders import Pooling
from reclass_plex.encoders.checkpoints import check_tensors, open_checkpoint, read_json
from reclass_plex.encoders.transformer import Block, choose_dtype, fill_network
from reclass_plex.encoders.windows import check_embeddings, check_mono, check_windows, equal_windows
from reclass_plex.errors import ModelError, printable
from reclass_plex.features.filters import shipped_bank

RATE = 16_000  # Hz
WINDOW_SECONDS = 30.0  # 3001 frames, of which the first 2992 are heard
LICENCE = "cc (which of them is not said)"
FILES = ("epoch_20.safetensors", "epoch_20.pth")
N_FFT = 400
HOP_LENGTH = 160  # samples, 10 ms
N_MELS = 80
FRAMES = 2992  # 29.92 s
PATCH = 16  # bands, and frames
ROWS, COLUMNS = N_MELS // PATCH, FRAMES // PATCH  # 5, 187
TOKENS = 1 + ROWS * COLUMNS  # 936
SMALLEST_POWER = 1.1920929e-07  # the smallest step of float32 at 1
LOG_MEL_MEAN, LOG_MEL_DEVIATION = -4.5, 4.5
EPS = 1e-6  # of the layer norms


@dataclass(frozen=True)
class VitConfig:
    """The sizes of the ViT. The published checkpoint has no configuration: these are its own."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    feedforward: int = 3072

    @classmethod
    def parse(cls, content: Mapping[str, Any]) -> VitConfig:
        """Read the object of a config.json. Raises ValueError, naming the key."""
        values = {field.name: content.get(field.name, field.default) for field in fields(cls)}
        for key, value in values.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{key} is {value!r}")
        config = cls(**values)
        if config.width % config.heads:
            raise ValueError(f"heads is {config.heads}, and does not divide width")
        return config

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the names and shapes of the published checkpoint."""
        return dict(self._tensors())

    def _tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        width, wide = self.width, self.feedforward
        yield "cls_token", (1, 1, width)
        yield "pos_embed", (1, TOKENS, width)
        yield "patch_embed.projection.weight", (width, 3, PATCH, PATCH)
        yield "patch_embed.projection.bias", (width,)
        dense = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
        dense |= {"ffn.layers.0.0": (wide, width), "ffn.layers.1": (width, wide)}
        for i in range(self.depth):
            for name, shape in dense.items():
                yield f"layers.{i}.{name}.weight", shape
                yield f"layers.{i}.{name}.bias", shape[:1]
        norms = [f"layers.{i}.{norm}" for i in range(self.depth) for norm in ("ln1", "ln2")]
        for norm in (*norms, "ln1"):
            yield f"{norm}.weight", (width,)
            yield f"{norm}.bias", (width,)


def log_mel(windows: Tensor) -> Tensor:
    """Return images (n, 80, 2992) of windows (n, samples > 200) float32 at 16 kHz.

    ln(mel power + 1.2e-7), shifted and scaled: 25 ms frames every 10 ms, centred, the ends
    mirrored; 80 bands from 50 to 8000 Hz, Slaney scale and norm. More frames than 2992 are cut off
    at the end; fewer are repeated in a circle, the audio itself in the middle.
    """
    window = torch.hann_window(N_FFT, device=windows.device)
    spectrum = torch.stft(windows, N_FFT, HOP_LENGTH, window=window, return_complex=True)
    power = torch.view_as_real(spectrum[..., :FRAMES]).square().sum(-1)  # (n, 201, frames)
    image = torch.log(_mel_filters(windows.device) @ power + SMALLEST_POWER)
    image = (image - LOG_MEL_MEAN) / LOG_MEL_DEVIATION
    frames = image.shape[2]
    if frames == FRAMES:
        return image
    before = (FRAMES - frames) // 2
    circle = (torch.arange(FRAMES, device=windows.device) - before) % frames
    return image[..., circle]


@functools.cache
def _mel_filters(device: torch.device) -> Tensor:
    return torch.from_numpy(shipped_bank("mel-jmla")).to(device)  # (80, 201)


class JmlaNetwork(nn.Module):
    """The ViT: images to all its tokens, after the final norm."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        width = config.width
        self.patch_weight = nn.Parameter(torch.empty(width, PATCH * PATCH))
        self.patch_bias = nn.Parameter(torch.empty(width))
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, TOKENS, width))
        self.blocks = nn.Sequential(
            *(
                Block(width, config.heads, config.feedforward, EPS, pre_norm=True)
                for _ in range(config.depth)
            )
        )
        self.norm = nn.LayerNorm(width, EPS)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (n, 80, 2992) to tokens (n, 936, width) float32."""
        normed: Tensor = self.norm(self.blocks(self._enter(images)))
        return normed

    def tokens(self, images: Tensor, blocks: int) -> Tensor:
        """Return what leaves the first `blocks` blocks, (n, 936, width) float32, without a norm."""
        left: Tensor = self.blocks[:blocks](self._enter(images))
        return left

    def _enter(self, images: Tensor) -> Tensor:
        """Return what enters the first block."""
        n = len(images)
        grid = images.view(n, ROWS, PATCH, COLUMNS, PATCH).transpose(2, 3)
        patches = grid.reshape(n, ROWS * COLUMNS, PATCH * PATCH) @ self.patch_weight.T
        tokens = torch.cat([self.cls_token.expand(n, -1, -1), patches + self.patch_bias], 1)
        return tokens + self.positions


def network_tensors(tensors: Mapping[str, Tensor], config: VitConfig) -> dict[str, Tensor]:
    """Return published tensors under the names, and in the shapes, of `JmlaNetwork`."""
    found = {
        "cls_token": tensors["cls_token"],
        "positions": tensors["pos_embed"],
        "patch_weight": tensors["patch_embed.projection.weight"].float().sum(1).flatten(1),
        "patch_bias": tensors["patch_embed.projection.bias"],
    }
    names = {"norm": "ln1"}
    parts = {"norm1": "ln1", "qkv": "attn.qkv", "out": "attn.proj", "norm2": "ln2"}
    parts |= {"widen": "ffn.layers.0.0", "narrow": "ffn.layers.1"}
    for i in range(config.depth):
        names |= {f"blocks.{i}.{ours}": f"layers.{i}.{theirs}" for ours, theirs in parts.items()}
    for ours, theirs in names.items():
        for part in ("weight", "bias"):
            found[f"{ours}.{part}"] = tensors[f"{theirs}.{part}"]
    return found


class Jmla:
    """OpenJMLA's backbone, ready to encode; see `Encoder`. It gives one vector a window."""

    name = "jmla"
    licence = LICENCE
    rate = RATE
    window_seconds = WINDOW_SECONDS
    layers: tuple[int, ...] = ()

    def __init__(
        self,
        config: VitConfig,
        tensors: Mapping[str, Tensor],
        pooling: Pooling = "mean",
        *,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> None:
        """Take the published tensors, already checked; `load_jmla` says the rest."""
        self.pooling, self.device = pooling, device
        self.dtype = choose_dtype(device) if dtype is None else dtype
        self.dims = config.width * (2 if pooling == "cls+mean" else 1)
        with torch.device("meta"):
            network = JmlaNetwork(config)
        fill_network(network, network_tensors(tensors, config), self.dtype, device)
        self.network: nn.Module = network

    def cut(self, samples: Tensor) -> Tensor:
        """Return windows (w, 480,000) of mono `samples` (n > 0,) at 16 kHz.

        Shorter audio is one window as it is, because its frames, not its samples, are repeated;
        less than 25 ms is repeated to that first.
        """
        check_mono(samples)
        if len(samples) < N_FFT:
            samples = samples.repeat(math.ceil(N_FFT / len(samples)))
        return equal_windows(samples, min(len(samples), round(RATE * WINDOW_SECONDS)))

    @torch.no_grad()
    def encode(self, windows: Tensor) -> Tensor:
        """Return embeddings (n, 1, dims) float32 of windows (n, samples > 200).

        Raises ValueError, ModelError.
        """
        check_windows(windows, N_FFT // 2 + 1)
        tokens = self.network(log_mel(windows.to(self.device, non_blocking=True)))
        parts = {"cls": tokens[:, :1], "mean": tokens[:, 1:].mean(1, keepdim=True)}
        pooled = torch.cat([parts[part] for part in self.pooling.split("+")], 2)
        return check_embeddings(pooled, self.name, self.dtype)


def load_jmla(
    folder: Path,
    pooling: Pooling = "mean",
    *,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
) -> Jmla:
    """Load the backbone from a folder with epoch_20.pth, or that converted to .safetensors.

    The tensors may be wrapped in a `state_dict`, and named with or without `backbone.`; then what
    else was trained beside the backbone is left out. `dtype` is that of the matrix products; None
    chooses it. A config.json with other sizes (`VitConfig`) may stand beside the weights; the
    published checkpoint has none. Raises ModelError, naming the file, if it is unreadable, or any
    name, shape or value is not the backbone's: 150 tensors, 86,366,208 parameters.
    """
    config, tensors = read_checkpoint(folder)
    return Jmla(config, tensors, pooling, device=device, dtype=dtype)


def read_checkpoint(folder: Path) -> tuple[VitConfig, Mapping[str, Tensor]]:
    """Return the sizes and the backbone's tensors, checked. Raises ModelError, naming the file."""
    config = read_sizes(folder)
    weights, tensors = open_checkpoint(folder, FILES)
    prefix = "backbone."
    if any(name.startswith(prefix) for name in tensors):
        tensors = {
            name.removeprefix(prefix): tensor
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }
    check_tensors(tensors, config.tensor_shapes(), weights)
    return config, tensors


def read_sizes(folder: Path) -> VitConfig:
    """Return the sizes of the backbone in `folder`. Raises ModelError, naming the file."""
    path = folder / "config.json"
    try:
        return VitConfig.parse(read_json(path)) if path.exists() else VitConfig()
    except ValueError as error:
        raise ModelError(f"{printable(path)}: {error}") from error
