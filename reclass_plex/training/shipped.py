"""Train, calibrate, judge and write the heads and ensembles that are shipped in `data/`.

    python -m reclass_plex.training.shipped --clips FOLDER [--out DATA] [--cache FOLDER]

FOLDER is a GTZAN-like collection (see `datasets.gtzan`). The story, in order: extract features;
out-of-fold predictions by grouped cross-validation, repeated; temperatures; genres that are known
by tags alone; pooling of windows and of stages; thresholds of early exits; final heads on all
clips; cards. `--report FILE` writes the figures as a Markdown table.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from reclass_plex import genres as taxonomies
from reclass_plex.models import DATA, write_sums
from reclass_plex.training import openset
from reclass_plex.training.datasets.gtzan import Clips, read_clips
from reclass_plex.training.extract import (
    FMA_RATE,
    extract_table,
    fma518_features,
    musicnn_features,
)
from reclass_plex.training.pooling import (
    default_ensemble,
    default_votes,
    row,
    ten_genre_ensemble,
)
from reclass_plex.training.stages import Fitted, Stage, cards, final_head, fit_stage, measure
from reclass_plex.training.study import fma518_recipe, musicnn_recipe


def main() -> None:
    """Run the whole story."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=DATA)
    parser.add_argument("--cache", type=Path, default=Path("training-cache"))
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)  # many small products: threads only wait for each other
    clips = read_clips(options.clips)
    both = extract_table(clips.path, musicnn_features, options.cache / "musicnn.npz")
    fma = extract_table(clips.path, fma518_features, options.cache / "fma518.npz")
    msd = both.columns(slice(250))
    plans = [
        Stage("musicnn-few", musicnn_recipe("musicnn-msd"), msd, 16_000, 2.992, 3),
        Stage("fma518", fma518_recipe(), fma, FMA_RATE, 3.0, 10),
        Stage("musicnn-full", musicnn_recipe("musicnn"), both, 16_000, 2.992, 10),
    ]
    report = [
        "| what | grouped accuracy | balanced | log loss | calibration error | train to valid |",
        "|---|---|---|---|---|---|",
    ]
    fitted = []
    for plan in plans:
        stage = fit_stage(plan, clips)
        fitted.append(stage)
        measured = measure(stage.votes, clips, "")
        report.append(row(plan.name, measured, stage.votes, stage.published, clips))
        for card in cards(stage, clips):
            final_head(stage, clips, card).save(options.out / "heads" / card.name)
            print(card.name, card.measured[0].accuracy, card.notes, flush=True)
        print(stage.temperature, stage.sharpness, stage.extension, flush=True)
    specs = [
        ten_genre_ensemble(fitted, clips, report),
        default_ensemble(fitted, clips, report),
    ]
    for spec in specs:
        assert set(spec.genres) <= set(taxonomies.TAXONOMIES[spec.taxonomy].genres)  # noqa: S101
        path = options.out / "ensemble" / f"{spec.taxonomy}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(spec.model_dump_json(indent=2) + "\n", encoding="utf-8")
    write_out_of_fold(options.out / "ensemble" / "out_of_fold.safetensors", fitted, clips)
    report += openset.train(both, clips, options.cache, options.out / "openset")
    write_sums(options.out)
    print("\n".join(report))
    if options.report:
        options.report.write_text("\n".join(report) + "\n", encoding="utf-8")


def write_out_of_fold(path: Path, fitted: Sequence[Fitted], clips: Clips) -> None:
    """Keep what thresholds were computed from: each stage's held-out votes, labels, tracks."""
    arrays = {stage.stage.name: np.stack(stage.votes).astype(np.float16) for stage in fitted} | {
        f"{stage.stage.name}-default": default_votes(stage, 1.0).astype(np.float16)
        for stage in fitted
    }
    arrays |= {"label": clips.label.astype(np.int8), "number": clips.number.astype(np.int16)}
    save_file(arrays, path)


if __name__ == "__main__":
    main()
