"""The feature sets that can be extracted: how each is computed, by which code and weights.

    fma          the 518 FMA features of the whole excerpt, one row, at the audio's own rate: as the
                 published table was made (see `features.fma` for the quirk of that rate)
    fma-windows  the same of windows of 3 s at 22,050 Hz: what the shipped heads hear
    musicnn      both checkpoints side by side, windows of 3 s
    mel          log-mel spectrograms of the same windows, as MusiCNN hears them: 187 frames of 96
                 bands, one after the other. For networks that learn from sound
    mert         mert-95m or mert-330m: every hidden layer's mean over time, since training learns
                 their weights; windows of 5 s
    mert-95m-top2, jmla-top12, ...  all hidden states that enter the last so many blocks, token by
                 token: 0.6 MB a window of MERT-95M, 1.4 MB of JMLA. For fine-tuning of these blocks
    jmla, clap   one vector a window of 30 s or 10 s

Rows depend on the audio and the set alone, bit for bit: not on how many processes there are or what
was computed before. So each recording goes through the models by itself, on one thread.
"""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from reclass_plex import models
from reclass_plex.encoders.top import parse_top
from reclass_plex.errors import ConfigError, ModelError
from reclass_plex.records import Excerpt, FloatArray, Waveform

if TYPE_CHECKING:
    from reclass_plex.device import Device
    from reclass_plex.encoders.lower import LowerPart

VERSION = 1  # of what is computed here: raise it when rows may change
WINDOW_SECONDS = 3.0  # of fma-windows, musicnn and mel
ALIASES = {"mert": "mert-95m"}
ENCODERS = ("mert-95m", "mert-330m", "jmla", "clap")
LIGHT_RATES: Mapping[str, int | Literal["native"]] = {
    "fma": "native",
    "fma-windows": 22_050,
    "musicnn": 16_000,
    "mel": 16_000,
}
NAMES = (*LIGHT_RATES, *ENCODERS)
WINDOWS_AT_ONCE = 8  # through an encoder: a fixed number, as sums may differ with a batch's size

Precision = Literal["float32", "bfloat16", "float16"]
Dtype = Literal["float16", "float32"]


@dataclass(frozen=True)
class FeatureSet:
    """What is extracted, complete: a process that gets one can compute it.

    `layers` are an encoder's hidden layers, () if it has no choice. `model` is the folder of
    fetched weights. `window_seconds` is how long a row's window is (of "full", at most).
    `versions` are those of all code and weights that decide about the rows' bits.
    """

    name: str
    table_name: str  # as a model card calls such features
    rate: int | Literal["native"]  # Hz
    window_seconds: float
    layers: tuple[int, ...]
    dtype: Dtype  # of the rows on disk
    device: Device
    precision: Precision  # of an encoder's matrix products
    model: Path | None
    versions: tuple[tuple[str, str], ...]


Extract = Callable[[Waveform], FloatArray]  # -> (windows, dims) or (windows, layers, dims)


def choose_sets(
    names: Sequence[str],
    excerpt: Excerpt,
    *,
    folder: Path | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Precision | None = None,
    dtype: Dtype | None = None,
) -> tuple[FeatureSet, ...]:
    """Return the sets called `names` (of `NAMES`, or "mert"), in that order, each once.

    `folder` has the fetched models. `precision` None is float32 on a CPU, and on a GPU what that
    is fastest in; `dtype` None is float16, but float32 for several layers: such a table is large
    and is read from disk as it stands. Raises ConfigError for an unknown name, ModelError naming
    every model that is not there, DeviceError if there is no GPU.
    """
    known = [ALIASES.get(name, name) for name in names]
    if unknown := [name for name in known if name not in NAMES and parse_top(name) is None]:
        listed = ", ".join((*NAMES, *ALIASES, "mert-95m-top2", "jmla-top2"))
        raise ConfigError(f"--features {', '.join(unknown)}: unknown; there are {listed}")
    if not known:
        raise ConfigError(f"--features: none is named; there are {', '.join(NAMES)}")
    folder = models.models_folder(folder)
    fetched = dict.fromkeys(_model_of(name) for name in known)
    missing = [models.why_missing(name, folder) for name in fetched if name is not None]
    if reasons := [reason for reason in missing if reason]:
        raise ModelError("; ".join(reasons))
    return tuple(
        _describe(name, excerpt, folder, device, precision, dtype) for name in dict.fromkeys(known)
    )


def _describe(
    name: str,
    excerpt: Excerpt,
    folder: Path,
    device: Literal["auto", "cpu", "cuda"],
    precision: Precision | None,
    dtype: Dtype | None,
) -> FeatureSet:
    from reclass_plex.audio import MAX_FULL_SECONDS

    model = _model_of(name)
    if model is None:
        whole = excerpt.seconds or MAX_FULL_SECONDS
        return FeatureSet(
            name=name,
            table_name=name if name in {"musicnn", "mel"} else "fma518",
            rate=LIGHT_RATES[name],
            window_seconds=whole if name == "fma" else WINDOW_SECONDS,
            layers=(),
            dtype=dtype or "float16",
            device="cpu",  # light enough for it
            precision="float32",
            model=None,
            versions=_versions(name, folder),
        )
    from reclass_plex.device import choose_device

    chosen = choose_device(device)
    rate, window_seconds, layers = _hearing(name, folder / model)
    return FeatureSet(
        name=name,
        table_name=name,
        rate=rate,
        window_seconds=window_seconds,
        layers=layers,
        dtype=dtype or ("float32" if layers else "float16"),
        device=chosen,
        precision=precision or _fastest(chosen),
        model=folder / model,
        versions=_versions(name, folder),
    )


def _hearing(name: str, folder: Path) -> tuple[int, float, tuple[int, ...]]:
    """Return an encoder's rate in Hz, its window in seconds, and all of its layers."""
    if name.startswith("jmla"):
        from reclass_plex.encoders import jmla

        return jmla.RATE, jmla.WINDOW_SECONDS, ()
    if name == "clap":
        from reclass_plex.encoders import clap

        return clap.RATE, clap.WINDOW_SECONDS, ()
    from reclass_plex.encoders import mert

    layers = () if parse_top(name) else tuple(range(mert.count_layers(folder)))
    return mert.RATE, mert.WINDOW_SECONDS, layers


def _model_of(name: str) -> str | None:
    """Return the fetched model that a set needs, None if it needs none."""
    top = parse_top(name)
    return top.model if top else name if name in ENCODERS else None


def _fastest(device: Device) -> Precision:
    """On a CPU it would be measured, and could come out otherwise when a run is continued."""
    if device == "cpu":
        return "float32"
    from reclass_plex.encoders.transformer import choose_dtype

    name = str(choose_dtype(device)).removeprefix("torch.")
    return next(known for known in get_args(Precision) if known == name)


def _versions(name: str, folder: Path) -> tuple[tuple[str, str], ...]:
    from reclass_plex.audio import ffmpeg_version

    found = {"extraction": str(VERSION), "ffmpeg": ffmpeg_version()}
    packages = ["soxr", "torch", *(("transformers",) if name == "clap" else ())]
    found |= {package: importlib.metadata.version(package) for package in packages}
    if name == "musicnn":
        sums = models.read_sums()
        found |= {file: digest for file, digest in sums.items() if file.startswith("musicnn/")}
    elif model := _model_of(name):
        manifest = models.read_manifest(model, folder)
        found |= {file.name: file.sha256 for file in manifest.files} if manifest else {}
    return tuple(sorted(found.items()))


def choose_jobs(sets: Sequence[FeatureSet], cores: int) -> int:
    """Return how many processes are best: one a core, if each has memory for its encoder."""
    folders = [one.model for one in sets if one.model is not None and one.device == "cpu"]
    if not folders:
        return cores
    from reclass_plex.memory import GIB, available_bytes

    weights = max(sum(file.stat().st_size for file in folder.iterdir()) for folder in folders)
    available = available_bytes()
    return cores if available is None else max(1, min(cores, available // (2 * weights + GIB)))


def load_extractor(features: FeatureSet) -> Extract:
    """Return what computes the rows of a set, its weights loaded. Raises ModelError."""
    if features.name == "fma":
        return _fma
    if features.name == "fma-windows":
        return _fma_windows
    if features.name == "musicnn":
        return _musicnn
    if features.name == "mel":
        return _mel
    import torch

    from reclass_plex.device import device_errors, run_in_halves
    from reclass_plex.encoders.lower import LowerPart
    from reclass_plex.encoders.opening import open_encoder

    assert features.model is not None  # noqa: S101 (every encoder has weights)
    dtype: torch.dtype = getattr(torch, features.precision)
    if top := parse_top(features.name):
        return _tokens(LowerPart(top, features.model, features.device, dtype))
    encoder = open_encoder(features.model, device=features.device, dtype=dtype)

    def encode(waveform: Waveform) -> FloatArray:
        windows = encoder.cut(torch.from_numpy(waveform.samples))
        with device_errors():
            parts = torch.split(windows, WINDOWS_AT_ONCE)
            states = torch.cat([run_in_halves(encoder.encode, part) for part in parts])
        embeddings: FloatArray = states.cpu().numpy()
        return embeddings if features.layers else embeddings[:, 0]

    return encode


def _tokens(lower: LowerPart) -> Extract:
    import torch

    from reclass_plex.device import device_errors, run_in_halves

    def encode(waveform: Waveform) -> FloatArray:
        windows = lower.cut(torch.from_numpy(waveform.samples))
        with device_errors():
            parts = torch.split(windows, WINDOWS_AT_ONCE)
            states = torch.cat([run_in_halves(lower.encode, part) for part in parts])
        tokens: FloatArray = states.flatten(1).cpu().numpy()
        return tokens

    return encode


def _fma(waveform: Waveform) -> FloatArray:
    import torch

    from reclass_plex.audio import resample
    from reclass_plex.features import MINIMUM_RATE, extract_fma_features

    if waveform.rate < MINIMUM_RATE:
        waveform = resample(waveform, 22_050)
    samples = torch.from_numpy(waveform.samples)
    return extract_fma_features(samples[None], waveform.rate).numpy()


def _fma_windows(waveform: Waveform) -> FloatArray:
    from reclass_plex.training.extract import fma518_features

    return fma518_features(waveform, _fitting(waveform))


def _musicnn(waveform: Waveform) -> FloatArray:
    from reclass_plex.training.extract import musicnn_features

    return musicnn_features(waveform, _fitting(waveform))


def _mel(waveform: Waveform) -> FloatArray:
    import torch

    from reclass_plex.audio import resample
    from reclass_plex.encoders.musicnn import RATE, log_mel_patches

    samples = torch.from_numpy(resample(waveform, RATE).samples)
    return log_mel_patches(samples, _fitting(waveform)).flatten(1).numpy()


def _fitting(waveform: Waveform) -> int:
    """How many windows stand side by side in an excerpt, at most."""
    return math.ceil(waveform.seconds / WINDOW_SECONDS)
