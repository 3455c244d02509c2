"""Resampling on the GPU, for the deep encoders, by torchaudio (the extra `gpu`).

At a hundred tracks a second, soxr alone would keep several cores busy. What the small stages hear
stays with soxr: their heads were trained on it.

torchaudio is linked to the CUDA of its torch, so it is imported only once a GPU was found: beside a
torch for the CPU its import fails with OSError. Where it is missing, or fails, soxr does the work.
"""

from __future__ import annotations

import functools
import importlib
import logging
import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from reclass_plex.audio import resample
from reclass_plex.records import Waveform

log = logging.getLogger(__name__)

# A windowed sinc with Kaiser's window: torchaudio's documentation has these as what is closest to
# resampy's "kaiser_best".
FILTER_WIDTH = 64  # zero crossings on each side
ROLLOFF = 0.9475937167399596  # the cut-off, as a share of the lower Nyquist frequency
BETA = 14.769656459379492
LARGEST_FILTER = 1 << 22  # taps; rates with a small common divisor would need billions


def resample_to(waveform: Waveform, rate: int, device: str) -> Tensor:
    """Return the samples of `waveform` at `rate` Hz, (n,) float32 on `device`.

    On a GPU with torchaudio they are copied there first, and resampled there; else by soxr.
    """
    kind = torch.device(device).type
    if kind == "cuda" and waveform.rate != rate and _filter_taps(waveform.rate, rate) is not None:
        resampler = _resampler(waveform.rate, rate, device)
        if resampler is not None:
            samples = torch.from_numpy(waveform.samples).pin_memory()
            exact: Tensor = resampler(samples.to(device, non_blocking=True).double())
            return exact.float()
    return torch.from_numpy(resample(waveform, rate).samples).to(device)


def _filter_taps(source: int, target: int) -> int | None:
    """Return the size of torchaudio's filter bank, or None if it is too large to be of use."""
    common = math.gcd(source, target)
    source, target = source // common, target // common
    width = math.ceil(FILTER_WIDTH * source / (min(source, target) * ROLLOFF))
    taps = target * (2 * width + source)
    return taps if taps <= LARGEST_FILTER else None


@functools.lru_cache(maxsize=32)
def _resampler(source: int, target: int, device: str) -> nn.Module | None:
    """Return torchaudio's resampler with its filters on `device`; None without torchaudio.

    In float64: it is a convolution, and these are computed in TF32 by default, 60 dB above noise.
    """
    transforms = _transforms()
    if transforms is None:
        return None
    resampler: nn.Module = transforms.Resample(
        source,
        target,
        resampling_method="sinc_interp_kaiser",
        lowpass_filter_width=FILTER_WIDTH,
        rolloff=ROLLOFF,
        beta=BETA,
        dtype=torch.float64,
    )
    return resampler.to(device)


@functools.cache
def _transforms() -> Any:  # noqa: ANN401 (a module, or None)
    if not torch.cuda.is_available():
        return None
    try:
        with warnings.catch_warnings():  # of what it is about to drop, none of it used here
            warnings.simplefilter("ignore")
            return importlib.import_module("torchaudio.transforms")
    except (ImportError, OSError, RuntimeError, AttributeError) as error:  # or of another torch
        reason = str(error).partition("\n")[0]
        log.info("soxr resamples, not the GPU: %s", reason)
        return None
