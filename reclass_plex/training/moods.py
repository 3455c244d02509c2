"""Measure how much of each mood and style there is in reference music: `data/moods.json`.

    python -m reclass_plex.training.moods --clips FOLDER [--out DATA]

FOLDER is a GTZAN-like collection (see `datasets.gtzan`). What this can and cannot do: nobody has
labelled these clips with moods, so nothing here says how often a mood is right. What is set is
how often it is said: a label goes to the share `GIVEN_TO` of reference music that has most of it,
all genres counted alike. The model's own probabilities are no guide: they follow how often people
tagged the Million Song Dataset, so that "happy" is never more probable than 0.02. `held_out` says
how well that share holds for other artists: levels from the training part of the published split,
given to its validation part. For styles the clips' genres are a check: `heard_in` says in which
genres a label is found.

Left out, with reasons: "beautiful" and "catchy" are judgements, and no mood that Plex or
MusicBrainz list; "chill" and "chillout" are one with "Mellow" (their logits correlate by 0.8 to
0.9); "acoustic" and "instrumental" are no styles; "punk", "ambient" and other tags restate a
genre; techno, new age and opera are known to `mtt` alone, which few tracks are heard by.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch

from reclass_plex.audio import decode_excerpt, resample
from reclass_plex.encoders.musicnn import RATE, load_musicnn, log_mel_patches
from reclass_plex.encoders.musicnn_tags import MSD_TAGS
from reclass_plex.models import DATA, write_sums
from reclass_plex.moods import LabelSpec, Vocabulary
from reclass_plex.training.datasets.gtzan import NAMES, Clips, read_clips
from reclass_plex.training.extract import EXCERPT
from reclass_plex.training.metrics import Floats, Labels

GIVEN_TO = 0.10  # of the reference music, at most
SHARES = tuple(round(1 - GIVEN_TO + step / 100, 2) for step in range(11))
WINDOWS = 10  # a clip
MENTIONED = 0.05  # share of a label's clips from which a genre is mentioned in `heard_in`

MOODS: Mapping[str, tuple[str, ...]] = {
    "Happy": ("happy",),
    "Sad": ("sad",),
    "Mellow": ("Mellow", "chill", "chillout"),
    "Party": ("party",),
    "Sexy": ("sexy",),
}
STYLES: Mapping[str, tuple[str, tuple[str, ...]]] = {  # name: tag, genres that it belongs to
    "Alternative Rock": ("alternative rock", ("Rock", "Punk", "Metal")),
    "Classic Rock": ("classic rock", ("Rock", "Blues")),
    "Hard Rock": ("hard rock", ("Rock", "Metal")),
    "Indie Rock": ("indie rock", ("Rock", "Punk")),
    "Progressive Rock": ("Progressive rock", ("Rock", "Metal")),
    "Heavy Metal": ("heavy metal", ("Metal",)),
    "Indie Pop": ("indie pop", ("Pop", "Rock", "Folk")),
    "House": ("House", ("Electronic", "Disco")),
    "Electro": ("electro", ("Electronic", "Disco", "Hip-Hop")),
}


def mean_logits(clips: Clips) -> Floats:
    """Return (clips, 50): MSD's logits, averaged over each clip's windows."""
    rows = []
    for path in clips.path:
        samples = torch.from_numpy(resample(decode_excerpt(path, EXCERPT), RATE).samples)
        logits = load_musicnn("msd").encode(log_mel_patches(samples, WINDOWS)).logits
        rows.append(logits.double().mean(0).numpy())
    return np.stack(rows)


def measure_labels(logits: Floats, clips: Clips) -> tuple[LabelSpec, ...]:
    """Return every label with its levels in the clips, whose genres count alike."""
    weights = _alike(clips.label)
    moods = [
        _measure(name, "mood", tags, (), logits, weights, clips) for name, tags in MOODS.items()
    ]
    styles = [
        _measure(name, "style", (tag,), genres, logits, weights, clips)
        for name, (tag, genres) in STYLES.items()
    ]
    return (*moods, *styles)


def _alike(labels: Labels) -> Floats:
    """Return weights (n,) that sum to 1, and to the same for each genre."""
    weights = 1 / np.bincount(labels)[labels]
    scaled: Floats = weights / weights.sum()
    return scaled


def _measure(
    name: str,
    kind: str,
    tags: tuple[str, ...],
    genres: tuple[str, ...],
    logits: Floats,
    weights: Floats,
    clips: Clips,
) -> LabelSpec:
    columns = logits[:, [MSD_TAGS.index(tag) for tag in tags]]
    scores = columns.mean(1)
    levels = weighted_quantiles(scores, weights, SHARES)
    has = scores >= levels[0]
    share = np.bincount(clips.label[has], weights[has], minlength=len(NAMES)) / weights[has].sum()
    fitted = scores[~clips.valid], _alike(clips.label[~clips.valid])
    level = weighted_quantiles(*fitted, SHARES[:1])[0]
    held_out = _alike(clips.label[clips.valid]) @ (scores[clips.valid] >= level)
    mentioned = [i for i in np.argsort(-share, kind="stable") if share[i] >= MENTIONED]
    return LabelSpec.model_validate(
        {
            "name": name,
            "kind": kind,
            "tags": tags,
            "genres": genres,
            "levels": [round(float(level), 4) for level in levels],
            "expected": round(float(weights @ (1 / (1 + np.exp(-columns))).mean(1)), 4),
            "held_out": round(float(held_out), 3),
            "heard_in": {NAMES[i]: round(float(share[i]), 2) for i in mentioned},
        }
    )


def weighted_quantiles(values: Floats, weights: Floats, shares: tuple[float, ...]) -> Floats:
    """Return for each share the lowest of `values` (n,) from which no more than the rest lies on.

    `weights` (n,) sum to 1. From the quantile 0.9 on lies at most a tenth; 1 is the highest value.
    """
    order = np.argsort(-values, kind="stable")
    above = np.cumsum(weights[order])  # the weight of a value and of all higher ones
    counts = [max(1, int(np.searchsorted(above, 1 - share + 1e-9, "right"))) for share in shares]
    quantiles: Floats = values[order][np.array(counts) - 1]
    return quantiles


def main() -> None:
    """Measure, and write the data file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=DATA)
    options = parser.parse_args()
    torch.set_num_threads(1)
    clips = read_clips(options.clips)
    vocabulary = Vocabulary(
        protocol=(
            f"{len(clips)} clips of GTZAN, most of them 3 s long, {len(NAMES)} genres counted"
            f" alike; a label is given to the {GIVEN_TO:.0%} that have most of it. There are no"
            " mood labels, so how often a label is right was not measured."
        ),
        command="python -m reclass_plex.training.moods --clips FOLDER",
        date=datetime.now(timezone.utc).date().isoformat(),
        clips=len(clips),
        shares=SHARES,
        labels=measure_labels(mean_logits(clips), clips),
    )
    path = options.out / "moods.json"
    path.write_text(vocabulary.model_dump_json(indent=1) + "\n", encoding="utf-8")
    write_sums(options.out)
    for label in vocabulary.labels:
        print(f"{label.name:17} {label.held_out:.3f} {label.expected:.4f} {label.heard_in}")


if __name__ == "__main__":
    main()
