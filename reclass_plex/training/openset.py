"""What is no music: speech and noise made on the spot, and a score that tells it from music.

Negatives are synthetic, so that anyone can make them again: espeak-ng reading in many languages,
speeds and pitches, alone, in rooms, in a babble and through noise; coloured noise, hum, tones,
sweeps, clicks, bursts, crackle. Languages, voice variants and seeds of the test stand in no fit.
"""

from __future__ import annotations

import io
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from safetensors.torch import save_file
from scipy import signal

from reclass_plex.encoders.musicnn import RATE, load_musicnn, log_mel_patches
from reclass_plex.evidence import OpenSet
from reclass_plex.records import FloatArray
from reclass_plex.training.datasets.gtzan import NAMES, Clips, grouped_folds
from reclass_plex.training.extract import Table
from reclass_plex.training.fit import fit_logistic
from reclass_plex.training.metrics import Floats, Labels, wilson_interval
from reclass_plex.training.study import clip_means

SECONDS = 12
COMPONENTS = 40
MUSIC_QUANTILE = 0.01  # of held-out music scores, and the ...
NOISE_QUANTILE = 0.95  # ... of held-out negatives: the threshold lies half-way between
DISTANCE_QUANTILE, DISTANCE_MARGIN = 0.99, 1.25  # the margin is for music that GTZAN lacks
L2 = 0.003
LIMIT = 5.0  # of the standardised input, as in `evidence.OpenSet`

FIT_VOICES = (
    "en-us", "en-gb-scotland", "de", "fr", "es", "it", "pl", "ru", "pt-br", "nl", "sv", "tr",
    "cs", "hu", "el", "hi", "cmn", "ja", "ar", "sw", "ro", "fi", "vi", "ko",
    "en-us+f2", "en-us+m3", "de+f3", "fr+m5", "es+f4", "it+m7", "ru+f1", "pl+m1",
)  # fmt: skip
TEST_VOICES = (
    "en-gb", "en-029", "da", "nb", "is", "uk", "bg", "sk", "lt", "lv", "et", "ca", "id", "ms",
    "fa", "ta", "bn", "ka", "hy", "af", "en-gb+whisper", "en-gb+croak", "da+f5", "nb+m2",
    "uk+m6", "ca+m4",
)  # fmt: skip
TEXT = (
    "The north wind and the sun were disputing which was the stronger, when a traveller came along "
    "wrapped in a warm cloak. They agreed that the one who first succeeded in making the traveller "
    "take his cloak off should be considered stronger than the other. "
)


def speak(voice: str, speed: int, pitch: int) -> FloatArray:
    """Return `SECONDS` of espeak-ng reading, 16 kHz, at -20 dBFS."""
    command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", TEXT * 2]
    wav = subprocess.run(command, check=True, capture_output=True).stdout
    samples, rate = soundfile.read(io.BytesIO(wav), dtype="float32")
    return _level(soxr.resample(samples, rate, RATE)[: SECONDS * RATE])


def _level(samples: FloatArray, dbfs: float = -20.0) -> FloatArray:
    rms = float(np.sqrt(np.square(samples).mean())) or 1.0
    result: FloatArray = (samples * (10 ** (dbfs / 20) / rms)).astype(np.float32)
    return result


def in_a_room(samples: FloatArray, generator: np.random.Generator) -> FloatArray:
    """Return speech cut into short calls with pauses, tilted, in a room that rings."""
    length = int(generator.uniform(0.4, 2.5) * RATE)
    pause = np.zeros(int(generator.uniform(0.0, 0.6) * RATE), np.float32)
    starts = generator.integers(0, len(samples) - length, 2 * SECONDS * RATE // length)
    calls = [part for start in starts for part in (samples[start : start + length], pause)]
    dry = np.concatenate(calls)[: SECONDS * RATE].astype(np.float64)
    dry[1:] += generator.uniform(-0.8, 0.8) * dry[:-1].copy()
    seconds = generator.uniform(0.1, 0.8)  # until the room is 60 dB down
    time = np.arange(int(seconds * RATE)) / RATE
    ringing = generator.standard_normal(len(time)) * 10 ** (-3 * time / seconds)
    ringing *= generator.uniform(0.1, 0.6) / np.sqrt(np.square(ringing).sum())
    ringing[0] = 1.0
    wet = signal.fftconvolve(dry, ringing)[: len(dry)]
    return _level(wet.astype(np.float32), generator.uniform(-30, -12))


def coloured(generator: np.random.Generator, slope: float) -> Floats:
    """Return noise whose power falls with frequency to the power `slope` (1 pink, 2 brown)."""
    spectrum = np.fft.rfft(generator.standard_normal(SECONDS * RATE))
    frequency = np.maximum(np.arange(len(spectrum)), 20.0)
    noise: Floats = np.fft.irfft(spectrum * frequency ** (-slope / 2))
    return noise


def noises(generator: np.random.Generator) -> Iterator[tuple[str, Floats]]:
    """Yield one of each kind of noise, its details drawn from `generator`."""
    time = np.arange(SECONDS * RATE) / RATE
    for name, slope in (("white", 0.0), ("pink", 1.0), ("brown", 2.0), ("blue", -1.0)):
        yield name, coloured(generator, slope + generator.uniform(-0.2, 0.2))
    mains = generator.choice([50.0, 60.0])
    harmonics = sum(np.sin(2 * np.pi * mains * n * time) / n for n in range(1, 12))
    yield "hum", harmonics + 0.02 * generator.standard_normal(len(time))
    yield "tone", np.sin(2 * np.pi * generator.uniform(100, 4000) * time)
    low, high = generator.uniform(50, 200), generator.uniform(2000, 7000)
    yield "sweep", np.sin(2 * np.pi * low * SECONDS / np.log(high / low)
                          * ((high / low) ** (time / SECONDS) - 1))  # fmt: skip
    clicks = np.zeros(len(time))
    clicks[generator.integers(0, len(time), int(generator.uniform(20, 400)))] = 1
    yield "clicks", clicks + 1e-3 * generator.standard_normal(len(time))
    gate = np.repeat(generator.random(SECONDS * 8) < 0.4, RATE // 8)
    yield "bursts", gate * coloured(generator, generator.uniform(0, 1))
    swell = 0.6 + 0.4 * np.sin(2 * np.pi * generator.uniform(0.05, 0.3) * time)
    yield "wind", swell * coloured(generator, generator.uniform(1.2, 2.2))
    yield "crackle", generator.standard_t(1.5, len(time)).clip(-50, 50)


def negatives(voices: tuple[str, ...], seed: int, rounds: int) -> Iterator[tuple[str, FloatArray]]:
    """Yield (kind, samples): voices alone and through noise, babbles, noises `rounds` times."""
    generator = np.random.default_rng(seed)
    spoken = []
    for voice in voices:
        spoken.append(
            speak(voice, int(generator.integers(120, 220)), int(generator.integers(20, 80)))
        )
        yield "speech", spoken[-1]
        for _ in range(3):
            yield "speech in a room", in_a_room(spoken[-1], generator)
        length = len(spoken[-1])
        noise = coloured(generator, generator.uniform(0, 2))[:length].astype(np.float32)
        yield "speech in noise", spoken[-1] + _level(noise, generator.uniform(-45, -30))
    length = min(map(len, spoken))
    for _ in range(len(voices) // 4):
        chosen = generator.choice(len(spoken), 4, replace=False)
        yield (
            "babble",
            _level(sum((spoken[i][:length] for i in chosen), np.zeros(length, np.float32))),
        )
    for _ in range(rounds):
        for name, samples in noises(generator):
            yield name, _level(samples.astype(np.float32), generator.uniform(-40, -10))


def extract_negatives(
    voices: tuple[str, ...], seed: int, rounds: int, cache: Path
) -> tuple[Table, list[str]]:
    """Return the windows (both checkpoints) and each clip's kind, from `cache` if it is there."""
    if not cache.exists():
        kinds, features = [], []
        for kind, samples in negatives(voices, seed, rounds):
            patches = log_mel_patches(torch.from_numpy(samples))
            both = [load_musicnn(c).encode(patches).features for c in ("msd", "mtt")]
            kinds.append(kind)
            features.append(torch.cat(both, 1).numpy())
        clip = np.concatenate([np.full(len(f), i) for i, f in enumerate(features)])
        np.savez_compressed(cache, kinds=kinds, features=np.concatenate(features), clip=clip)
    with np.load(cache) as stored:
        clip = stored["clip"]
        table = Table(stored["features"].astype(float), clip, np.zeros(len(clip), bool))
        return table, [str(kind) for kind in stored["kinds"]]


def fit_scores(music: Table, labels: Labels, other: Table) -> dict[str, Floats]:
    """Fit the music score and the distance; thresholds are still open. Genres count alike."""
    share = 1 / np.bincount(music.clip, minlength=music.clip.max() + 1)[music.clip]
    genre = labels[music.clip]
    share /= np.bincount(genre, share, minlength=len(NAMES))[genre] * len(NAMES)
    noise = 1 / np.bincount(other.clip)[other.clip]
    features = np.concatenate([music.features, other.features])
    weights = np.concatenate([share, noise / noise.sum()]) / 2
    target = np.concatenate([np.ones(len(share), np.int64), np.zeros(len(noise), np.int64)])
    width = features.shape[1]
    # Standardised by the music alone, so that the distance is one from music.
    mean = share @ music.features
    deviation = np.sqrt(share @ (music.features - mean) ** 2) + 1e-3
    z = ((features - mean) / deviation).clip(-LIMIT, LIMIT)
    model = fit_logistic(
        z, target, weights, genres=2, prior=np.zeros((width, 2)), freedom=np.ones(width), l2=L2
    )
    difference = (model.weight[:, 1] - model.weight[:, 0]) / model.deviation
    bias = model.bias[1] - model.bias[0] - model.mean @ difference
    dense: Labels = np.unique(music.clip, return_inverse=True)[1]
    means = clip_means(z[: len(share)], dense)
    _, values, axes = np.linalg.svd(means - means.mean(0), full_matrices=False)
    scale = values[:COMPONENTS] / np.sqrt(len(means))
    return {
        "mean": mean, "deviation": deviation, "weight": difference, "bias": np.array(bias),
        "axes": axes[:COMPONENTS].T / scale,
        "min_music": np.array(-1e9), "max_distance": np.array(1e9),
    }  # fmt: skip


def score_clips(parts: Mapping[str, Floats], table: Table) -> Floats:
    """Return (clips, 2): music score and distance of every clip in `table`."""
    judge = OpenSet({n: torch.from_numpy(np.asarray(p)).float() for n, p in parts.items()})
    rows = [table.features[table.clip == clip] for clip in np.unique(table.clip)]
    return np.array([judge.score(torch.from_numpy(r).float()) for r in rows])


def _negative_folds(kinds: Sequence[str]) -> Labels:
    """Return each negative's fold: whole kinds of noise together, voices dealt out one by one."""
    names = sorted(set(kinds))
    spoken = ("speech", "speech in a room", "speech in noise", "babble")
    return np.array([(i // 5 if k in spoken else names.index(k)) % 5 for i, k in enumerate(kinds)])


def train(both: Table, clips: Clips, cache: Path, out: Path) -> list[str]:
    """Fit, set thresholds on held-out folds, test on other voices; write; return report lines."""
    fit_noise, fit_kinds = extract_negatives(FIT_VOICES, 1, 6, cache / "negatives-fit.npz")
    test_noise, kinds = extract_negatives(TEST_VOICES, 2, 3, cache / "negatives-test.npz")
    lines = []
    cuts: tuple[tuple[str, Callable[[Table], Table]], ...] = (
        ("musicnn-msd", lambda table: table.columns(slice(250))),
        ("musicnn", lambda table: table),
    )
    for name, cut in cuts:
        music, other, test = cut(both.real), cut(fit_noise), cut(test_noise)
        held = np.empty((len(clips), 2))
        fold = grouped_folds(clips, 0)
        for k in range(fold.max() + 1):
            inside = np.isin(music.clip, np.flatnonzero(fold != k))
            parts = fit_scores(music.rows(inside), clips.label, other)
            held[fold == k] = score_clips(parts, music.rows(~inside))
        unheard = np.empty(len(fit_kinds))
        group = _negative_folds(fit_kinds)
        for k in range(group.max() + 1):
            away = np.isin(other.clip, np.flatnonzero(group == k))
            parts = fit_scores(music, clips.label, other.rows(~away))
            unheard[group == k] = score_clips(parts, other.rows(away))[:, 0]
        parts = fit_scores(music, clips.label, other)
        lowest_music = np.quantile(held[:, 0], MUSIC_QUANTILE)
        highest_noise = np.quantile(unheard, NOISE_QUANTILE)
        parts["min_music"] = np.array((lowest_music + highest_noise) / 2)
        parts["max_distance"] = np.array(
            DISTANCE_MARGIN * np.quantile(held[:, 1], DISTANCE_QUANTILE)
        )
        out.mkdir(parents=True, exist_ok=True)
        save_file(
            {n: torch.from_numpy(np.asarray(p)).float().contiguous() for n, p in parts.items()},
            out / f"{name}.safetensors",
        )
        refused = (held[:, 0] < parts["min_music"]) | (held[:, 1] > parts["max_distance"])
        scores = score_clips(parts, test)
        caught = (scores[:, 0] < parts["min_music"]) | (scores[:, 1] > parts["max_distance"])
        low, high = wilson_interval(float(caught.sum()), len(caught))
        by_kind = ", ".join(
            f"{kind} {caught[[k == kind for k in kinds]].mean():.0%}" for kind in sorted(set(kinds))
        )
        lines.append(
            f"- open set on {name}: music scores from {lowest_music:.2f} (1 %), unheard kinds of "
            f"noise to {highest_noise:.2f} (95 %), threshold between; {refused.mean():.1%} of "
            f"held-out music refused; of {len(caught)} unheard speech and noise clips "
            f"{caught.mean():.1%} ({low:.2f} to {high:.2f}) refused: {by_kind}"
        )
    return lines
