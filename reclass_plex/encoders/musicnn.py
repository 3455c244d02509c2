"""MusiCNN: two small convolutional networks that tag music (Pons and Serra, 2019; ISC licence).

`msd` knows 50 Last.fm tags (about 200,000 tracks of the Million Song Dataset), `mtt` the 50 tags
of MagnaTagATune. Both hear the same log-mel patches of 3 s: 187 frames of 256 samples at 16 kHz,
96 mel bands. Weights stand in `data/musicnn/` under their TensorFlow names and layouts.

Conventions: patches are (n, 187, 96) float32, time before frequency; everything runs without
gradients, on the device of the weights.

Where the time goes, and what is done about it:
- Most filters of the front end died in training (497 of 561 in `msd`, 239 in `mtt`, weights of
  about 1e-30): their channels are constants and are not computed (`DEAD_BELOW`).
- The timbral convolutions, (7 x 38) and (7 x 67) with one input channel, are four fifths of the
  rest. Along frequency they go through a discrete Fourier transform of 96 points, written as matrix
  products: a third of the multiplications, and the same result to 1e-5 (`_TimbralBranch`).
- Batch norms come after the ReLU and before the maximum over frequency; they are applied to what
  the maximum leaves (`_Rectified`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from reclass_plex.encoders.musicnn_tags import MSD_TAGS, MTT_TAGS
from reclass_plex.errors import ModelError
from reclass_plex.features.filters import shipped_bank
from reclass_plex.models import DATA, check_shapes, load_tensors

RATE = 16_000  # Hz
N_FFT = 512
HOP_LENGTH = 256  # samples, 16 ms
N_MELS = 96
PATCH_FRAMES = 187  # 2.992 s
BATCH_NORM_EPS = 1e-3
TIMBRAL_TAPS = 7  # frames
TIMBRAL_PADDING = 3  # frames of zeros on each side
# Most filters of the front end died in training (497 of 561 in `msd`): their weights are about
# 1e-30. A channel is left out, as the constant that it is, if no input can move it by this much.
DEAD_BELOW = 1e-6
LOUDEST_LOG_MEL = 10.0  # of audio 30 dB over full scale; the bound of "no input"
N_BINS = N_MELS // 2 + 1  # of the Fourier transform along the mel bands

Checkpoint = Literal["msd", "mtt"]
CHECKPOINTS: tuple[Checkpoint, ...] = get_args(Checkpoint)
PENULTIMATE = slice(50, 250)  # of `MusicnnOutput.features`

TAGS: Mapping[Checkpoint, tuple[str, ...]] = {"msd": MSD_TAGS, "mtt": MTT_TAGS}

_KERNELS: tuple[tuple[int, ...], ...] = (
    (7, 38, 1, 204), (7, 67, 1, 204),
    (128, 1, 1, 51), (64, 1, 1, 51), (32, 1, 1, 51),
    (7, 561, 1, 64), (7, 64, 1, 64), (7, 64, 1, 64),
)  # fmt: skip
_NORMS = (1, 204, 204, 51, 51, 51, 64, 64, 64, 1506, 200)


def _variables() -> Iterator[tuple[str, tuple[int, ...]]]:
    for i, shape in enumerate(_KERNELS):
        key = "conv2d" + (f"_{i}" if i else "")
        yield f"{key}/kernel", shape
        yield f"{key}/bias", shape[3:]
    for i, channels in enumerate(_NORMS):
        key = "batch_normalization" + (f"_{i}" if i else "")
        for part in ("gamma", "beta", "moving_mean", "moving_variance"):
            yield f"{key}/{part}", (channels,)
    for key, shape in (("dense", (1506, 200)), ("dense_1", (200, 50))):
        yield f"{key}/kernel", shape
        yield f"{key}/bias", shape[1:]


VARIABLES: Mapping[str, tuple[int, ...]] = dict(_variables())  # the original's names and shapes


@dataclass(frozen=True)
class MusicnnOutput:
    """What one checkpoint says about n patches.

    `logits` (n, 50) before the sigmoid, in the order of `TAGS`; `penultimate` (n, 200);
    `max_pool` and `mean_pool` (n, 753) over time of the front end (561) and the mid-end (3 x 64).
    """

    logits: Tensor
    penultimate: Tensor
    max_pool: Tensor
    mean_pool: Tensor

    @property
    def tags(self) -> Tensor:
        """Tag probabilities (n, 50)."""
        return torch.sigmoid(self.logits)

    @property
    def features(self) -> Tensor:
        """What the heads read: logits and penultimate side by side, (n, 250)."""
        return torch.cat([self.logits, self.penultimate], 1)


@functools.cache
def _mel_filters(device: torch.device) -> Tensor:
    bank = shipped_bank("mel-musicnn").T  # (257, 96)
    return torch.from_numpy(np.ascontiguousarray(bank)).to(device)


def log_mel(samples: Tensor) -> Tensor:
    """Return the log-mel spectrogram (frames, 96) of mono `samples` (n,) float32 at 16 kHz.

    log10(10000 x + 1) of the mel power spectrogram, in float32: the float16 of the original
    overflows to infinity on loud music. Frames are centred, the ends mirrored, as there.
    At least 257 samples are needed (ValueError), which is what mirroring takes.
    """
    if samples.ndim != 1 or len(samples) <= N_FFT // 2:
        raise ValueError(f"log_mel takes (n > {N_FFT // 2},) samples, not {tuple(samples.shape)}")
    window = torch.hann_window(N_FFT, device=samples.device)
    spectrum = torch.stft(
        samples, N_FFT, HOP_LENGTH, window=window, center=True, return_complex=True
    )
    power = torch.view_as_real(spectrum).square().sum(-1)  # (257, frames)
    return torch.log10(10_000 * (power.T @ _mel_filters(samples.device)) + 1)


def choose_windows(n_frames: int, count: int) -> tuple[int, ...]:
    """Return the first frames of at most `count` patches, evenly spread over `n_frames`.

    The first patch starts at 0 and the last one ends at the end; there are never more than fit
    side by side, except that there is always one.
    """
    fitting = max(1, min(count, n_frames // PATCH_FRAMES))
    spare = max(0, n_frames - PATCH_FRAMES)
    if fitting == 1:
        return (spare // 2,)
    return tuple(round(i * spare / (fitting - 1)) for i in range(fitting))


def spread_indices(length: int, count: int) -> tuple[int, ...]:
    """Return at most `count` indices below `length`, evenly spread and away from the ends."""
    count = min(count, length)
    return tuple((2 * i + 1) * length // (2 * count) for i in range(count))


def log_mel_patches(
    samples: Tensor, count: int = 10, starts: Sequence[int] | None = None
) -> Tensor:
    """Return patches (n <= count, 187, 96) spread over `samples` (n,) at 16 kHz.

    Audio shorter than a patch is repeated, frame by frame, until it fills one: padding with
    silence would be heard as a quiet, sparse piece. `starts` (frames) overrides the choice.
    """
    spectrogram = log_mel(samples)
    frames = len(spectrogram)
    if frames < PATCH_FRAMES:
        spectrogram = spectrogram.repeat(math.ceil(PATCH_FRAMES / frames), 1)[:PATCH_FRAMES]
        frames = PATCH_FRAMES
    if starts is None:
        starts = choose_windows(frames, count)
    return torch.stack([spectrogram[s : s + PATCH_FRAMES] for s in starts])


class _Rectified(nn.Module):
    """ReLU, then batch norm, then a maximum: computed after the maximum instead.

    Batch norm is y = scale * relu(x) + shift, and over any axis
    max(y) = scale * relu(max(x)) + shift for scale >= 0, scale * relu(min(x)) + shift otherwise.
    So the convolution before is built with `sign` * weights, and only its maximum is needed.
    """

    sign: Tensor
    scale: Tensor
    shift: Tensor
    bias: Tensor

    def __init__(self, scale: Tensor, shift: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("sign", torch.where(scale < 0, -1.0, 1.0))
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)
        self.register_buffer("bias", bias)

    def forward(self, maximum: Tensor) -> Tensor:
        """Map the maximum of sign * (x - bias), (..., channels), to that of the batch norm."""
        return torch.relu(maximum * self.sign + self.bias) * self.scale + self.shift


class _TimbralBranch(nn.Module):
    """A convolution of (7 frames x k bands) over 96 bands, and the maximum over frequency.

    Along frequency, the n = 96 - k + 1 valid outputs of a correlation equal the first n of a
    circular one of 96 points: y = IDFT(DFT(x) conj(DFT(w))). Outputs are numbered m = -h .. from
    their middle, so that each pair m, -m comes from one sum of cosines c and one of sines s:
    max(c + s, c - s) = c + |s|. Three matrix products in all, none with an FFT's small steps.
    """

    real: Tensor
    imag: Tensor
    cosines: Tensor
    sines: Tensor

    def __init__(self, kernel: Tensor, rectified: _Rectified) -> None:
        super().__init__()
        bands = kernel.shape[1]
        outputs = N_MELS - bands + 1
        half = outputs // 2
        self.even = outputs % 2 == 0  # then m = -half has no partner
        self.rectified = rectified
        bins = torch.arange(N_BINS, dtype=torch.float64)
        weights = (kernel.double() * rectified.sign.double()).permute(0, 2, 1)  # (taps, C, bands)
        spectrum = torch.fft.rfft(weights, n=N_MELS).conj()
        spectrum = spectrum * torch.exp(2j * math.pi * bins * half / N_MELS)  # centre the outputs
        re, im = spectrum.real.permute(2, 0, 1), spectrum.imag.permute(2, 0, 1)  # (bins, taps, C)
        # (bins, 2 taps, C) each: the product with a window's real and imaginary parts, beside it.
        self.register_buffer("real", torch.cat([re, -im], 1).float().contiguous())
        self.register_buffer("imag", torch.cat([im, re], 1).float().contiguous())
        angle = 2 * math.pi / N_MELS * torch.arange(half + 1, dtype=torch.float64)[:, None] * bins
        weight = torch.full_like(bins, 2 / N_MELS)
        weight[[0, -1]] = 1 / N_MELS  # the two bins that have no conjugate
        self.register_buffer("cosines", (angle.cos() * weight).float())  # (half + 1, bins)
        self.register_buffer("sines", (-angle.sin() * weight).float())

    def forward(self, spectrum: Tensor) -> Tensor:
        """Return (187, C) for one patch's spectrum, (bins, 187, 2 taps) as `_unfold` gives it."""
        bins, frames, _ = spectrum.shape
        real = torch.bmm(spectrum, self.real).view(bins, -1)
        imag = torch.bmm(spectrum, self.imag).view(bins, -1)
        sums = self.cosines @ real  # (half + 1, frames * C)
        differences = self.sines @ imag
        if self.even:
            unpaired = sums[-1] - differences[-1]
            maximum = sums[:-1].add_(differences[:-1].abs_()).amax(0)
            maximum = torch.maximum(maximum, unpaired)
        else:
            maximum = sums.add_(differences.abs_()).amax(0)
        rectified: Tensor = self.rectified(maximum.view(frames, -1))
        return rectified


class _TemporalBranch(nn.Module):
    """A convolution of (k frames x 1 band) with 'same' padding, and the maximum over frequency.

    `BLOCK` neighbouring outputs come from one row of a matrix product (a Toeplitz matrix of the
    weights), so that frames are copied k / BLOCK times, not k times.
    """

    BLOCK = 8
    toeplitz: Tensor

    def __init__(self, kernel: Tensor, rectified: _Rectified) -> None:
        super().__init__()
        self.taps, _, channels = kernel.shape
        self.segment = self.taps + self.BLOCK - 1
        toeplitz = torch.zeros(self.segment, self.BLOCK, channels)
        for b in range(self.BLOCK):
            toeplitz[b : b + self.taps, b] = kernel[:, 0] * rectified.sign
        self.register_buffer("toeplitz", toeplitz.flatten(1))
        self.rectified = rectified

    def forward(self, bands: Tensor) -> Tensor:
        """Return (187, C) for one patch as (96 bands, 187 frames)."""
        blocks = math.ceil(PATCH_FRAMES / self.BLOCK)
        left = (self.taps - 1) // 2
        length = (blocks - 1) * self.BLOCK + self.segment
        padded = functional.pad(bands, (left, length - PATCH_FRAMES - left))
        segments = padded.unfold(1, self.segment, self.BLOCK)  # (96, blocks, segment)
        products = segments.reshape(-1, self.segment) @ self.toeplitz
        maximum = products.view(N_MELS, -1).amax(0).view(blocks * self.BLOCK, -1)
        rectified: Tensor = self.rectified(maximum[:PATCH_FRAMES])
        return rectified


class FrozenFront:
    """The front end alone, fast, for a network whose other parts learn.

    `kernels` are (7, k, C) or (k, 1, C), in the order of the branches, and hold the `sign` of their
    norms already; `norms` are scale, shift, bias and sign, (C,) each.
    """

    def __init__(
        self, kernels: Sequence[Tensor], norms: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]]
    ) -> None:
        with torch.no_grad():
            dft = torch.fft.rfft(torch.eye(N_MELS, dtype=torch.float64))
            self._dft = torch.stack([dft.real, dft.imag]).float()
            self._timbral: list[_TimbralBranch] = []
            self._temporal: list[_TemporalBranch] = []
            for kernel, (scale, shift, bias, sign) in zip(kernels, norms, strict=True):
                rectified = _Rectified(scale.clone(), shift.clone(), (bias * sign).clone())
                if kernel.shape[1] > 1:
                    self._timbral.append(_TimbralBranch(kernel * sign, rectified))
                else:
                    self._temporal.append(_TemporalBranch(kernel * sign, rectified))

    @torch.no_grad()
    def __call__(self, patches: Tensor) -> Tensor:
        """Return the channels (n, C, 187) of normalised patches (n, 187, 96), on the CPU."""
        return torch.stack([self._one(patch) for patch in patches]).transpose(1, 2)

    def _one(self, patch: Tensor) -> Tensor:
        return _front_end(patch, self._dft, self._timbral, self._temporal)


def _front_end(
    patch: Tensor, dft: Tensor, timbral: Iterable[nn.Module], temporal: Iterable[nn.Module]
) -> Tensor:
    """Return the live channels (187, live) for one normalised patch (187, 96)."""
    # One patch at a time: its intermediate results stay in the processor's cache.
    padded = functional.pad(patch, (0, 0, TIMBRAL_PADDING, TIMBRAL_PADDING))
    spectrum = (padded @ dft).unfold(1, TIMBRAL_TAPS, 1)  # (2, 187, bins, 7)
    spectrum = spectrum.permute(2, 1, 0, 3).reshape(N_BINS, PATCH_FRAMES, -1)
    bands = patch.T.contiguous()
    channels = [branch(spectrum) for branch in timbral]
    return torch.cat(channels + [branch(bands) for branch in temporal], 1)


class _MidLayer(nn.Module):
    """A convolution of 7 frames x all channels to 64, ReLU, batch norm.

    Input channels that never change are not read: their `constants` (0 for the `live` ones) give
    a bias that differs only near the ends, where the zeros of the padding replace them.
    """

    weight: Tensor
    bias: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        kernel: Tensor,
        bias: Tensor,
        scale: Tensor,
        shift: Tensor,
        live: Tensor,
        constants: Tensor,
    ) -> None:
        super().__init__()
        weight = kernel.permute(2, 1, 0)
        image = constants[:, None].expand(-1, PATCH_FRAMES)
        self.register_buffer("weight", weight[:, live].contiguous())
        self.register_buffer("bias", functional.conv1d(image, weight, bias, padding=3))
        self.register_buffer("scale", scale[:, None])
        self.register_buffer("shift", shift[:, None])

    def forward(self, x: Tensor) -> Tensor:
        """Map the live channels (n, live, frames) to (n, 64, frames)."""
        y = functional.conv1d(x, self.weight, padding=3) + self.bias
        return torch.relu(y) * self.scale + self.shift


class _Dense(nn.Module):
    """A dense layer, the batch norm before it folded in."""

    weight: Tensor
    bias: Tensor

    def __init__(self, kernel: Tensor, bias: Tensor, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", kernel * scale[:, None])
        self.register_buffer("bias", bias + shift @ kernel)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs) to (n, outputs)."""
        return x @ self.weight + self.bias


class Musicnn(nn.Module):
    """One checkpoint, ready to encode patches."""

    input_norm: Tensor
    live: Tensor
    constants: Tensor
    penultimate_norm: Tensor
    dft: Tensor

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        """Prepare `weights` (TensorFlow names and layouts).

        Raises ModelError where a variable is missing, has another shape, or is not finite.
        """
        super().__init__()
        check_shapes(weights, VARIABLES)

        def norm(index: int) -> tuple[Tensor, Tensor]:
            key = "batch_normalization" + (f"_{index}" if index else "")
            variance = weights[f"{key}/moving_variance"] + BATCH_NORM_EPS
            scale = weights[f"{key}/gamma"] * torch.rsqrt(variance)
            return scale, weights[f"{key}/beta"] - weights[f"{key}/moving_mean"] * scale

        def layer(index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            key = "conv2d" + (f"_{index}" if index else "")
            kernel, bias = weights[f"{key}/kernel"], weights[f"{key}/bias"]
            return kernel[:, :, 0], bias, *norm(index + 1)

        self.register_buffer("input_norm", torch.stack(norm(0)))
        loudest = (norm(0)[0] * LOUDEST_LOG_MEL).abs() + norm(0)[1].abs()
        live: list[Tensor] = []
        constants: list[Tensor] = []
        branches: list[nn.Module] = []
        for i in range(5):
            kernel, bias, scale, shift = layer(i)
            alive = kernel.abs().sum((0, 1)) * scale.abs() * loudest > DEAD_BELOW
            rectified = _Rectified(scale[alive], shift[alive], bias[alive])
            branch = _TimbralBranch if i < 2 else _TemporalBranch
            branches.append(branch(kernel[..., alive], rectified))
            live.append(alive)
            constants.append(torch.where(alive, 0, torch.relu(bias) * scale + shift))
        self.timbral, self.temporal = nn.ModuleList(branches[:2]), nn.ModuleList(branches[2:])
        self.register_buffer("live", torch.cat(live).nonzero()[:, 0])
        self.register_buffer("constants", torch.cat(constants))
        every, none = torch.arange(64), torch.zeros(64)
        self.mid = nn.ModuleList(
            [_MidLayer(*layer(5), self.live, self.constants)]
            + [_MidLayer(*layer(i), every, none) for i in (6, 7)]
        )
        self.dense = _Dense(weights["dense/kernel"], weights["dense/bias"], *norm(9))
        self.register_buffer("penultimate_norm", torch.stack(norm(10)))
        self.output = _Dense(
            weights["dense_1/kernel"], weights["dense_1/bias"], torch.ones(200), torch.zeros(200)
        )
        dft = torch.fft.rfft(torch.eye(N_MELS, dtype=torch.float64))
        self.register_buffer("dft", torch.stack([dft.real, dft.imag]).float())  # (2, 96, bins)

    def forward(self, patches: Tensor) -> MusicnnOutput:
        """Encode `patches` (n >= 1, 187, 96)."""
        if patches.ndim != 3 or patches.shape[1:] != (PATCH_FRAMES, N_MELS) or not len(patches):
            shape = tuple(patches.shape)
            raise ValueError(f"patches are (n, {PATCH_FRAMES}, {N_MELS}), not {shape}")
        normed = patches * self.input_norm[0] + self.input_norm[1]
        front = torch.stack([self._front_end(patch) for patch in normed]).transpose(1, 2)
        first = self.mid[0](front)
        second = self.mid[1](first) + first
        third = self.mid[2](second) + second
        layers = torch.cat([front, first, second, third], 1)
        max_pool, mean_pool = self._fill(layers.amax(2)), self._fill(layers.mean(2))
        pooled = torch.stack([max_pool, mean_pool], 2).flatten(1)  # max0, mean0, max1, mean1, ...
        penultimate = torch.relu(self.dense(pooled))
        penultimate = penultimate * self.penultimate_norm[0] + self.penultimate_norm[1]
        return MusicnnOutput(self.output(penultimate), penultimate, max_pool, mean_pool)

    @torch.no_grad()
    def encode(self, patches: Tensor) -> MusicnnOutput:
        """Encode `patches` (n >= 1, 187, 96), without gradients."""
        return self.forward(patches)

    def _fill(self, pool: Tensor) -> Tensor:
        """Return (n, 753) from (n, live + 3 * 64): the constant channels in their places."""
        front = self.constants.repeat(len(pool), 1)
        front[:, self.live] = pool[:, : len(self.live)]
        return torch.cat([front, pool[:, len(self.live) :]], 1)

    def _front_end(self, patch: Tensor) -> Tensor:
        """Return the live channels (187, live) for one normalised patch (187, 96)."""
        return _front_end(patch, self.dft, self.timbral, self.temporal)


@functools.cache
def load_musicnn(checkpoint: Checkpoint, device: str = "cpu") -> Musicnn:
    """Return a bundled checkpoint on a device, loaded once a process.

    Raises ModelError, naming the file, if it is missing or damaged.
    """
    path = DATA / "musicnn" / f"{checkpoint}.safetensors"
    try:
        return Musicnn(load_tensors(path)).eval().to(device)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
