"""Train, calibrate, judge and write the heads and ensembles that are shipped in `data/`.

    python -m reclass_plex.training.shipped --clips FOLDER [--out DATA] [--cache FOLDER]
    python -m reclass_plex.training.shipped --exits [--out DATA]

FOLDER is a GTZAN-like collection (see `datasets.gtzan`). The story, in order: extract features;
out-of-fold predictions by grouped cross-validation, repeated; temperatures; genres that are known
by tags alone; pooling of windows and of stages; thresholds of early exits; final heads on all
clips; cards. `--report FILE` writes the figures as a Markdown table. `--exits` fits nothing but the
thresholds anew, from the held-out votes in DATA, which needs no clips.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from reclass_plex import genres as taxonomies
from reclass_plex.heads import load_card
from reclass_plex.models import DATA, write_sums
from reclass_plex.profiles import EnsembleSpec, load_ensemble
from reclass_plex.training import openset
from reclass_plex.training.datasets.gtzan import Clips, read_clips
from reclass_plex.training.exits import CERTAINTY, KINSHIP, Answers, HeldOut, exit_thresholds
from reclass_plex.training.extract import (
    FMA_RATE,
    Table,
    extract_table,
    fma518_features,
    musicnn_features,
)
from reclass_plex.training.fit import pool
from reclass_plex.training.held_out import FILE, read_held_out
from reclass_plex.training.metrics import Floats
from reclass_plex.training.pooling import (
    HIDDEN,
    PROTOCOL,
    default_ensemble,
    default_votes,
    hidden_votes,
    row,
    ten_genre_ensemble,
)
from reclass_plex.training.stages import Fitted, Stage, cards, final_head, fit_stage, measure
from reclass_plex.training.study import fma518_recipe, musicnn_recipe

EXITS = (
    "one threshold for all stages that know all genres, by learn then test on all early exits "
    f"together (fixed-sequence tests, one-sided Clopper-Pearson bound at {CERTAINTY}); tracks "
    f"count once, those of a block as correlated by {KINSHIP}."
)


def main() -> None:
    """Run the whole story."""
    parser = argparse.ArgumentParser(description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--clips", type=Path)
    what.add_argument("--exits", action="store_true")
    parser.add_argument("--out", type=Path, default=DATA)
    parser.add_argument("--cache", type=Path, default=Path("training-cache"))
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)  # many small products: threads only wait for each other
    if options.exits:
        write_exits(options.out)
        write_sums(options.out)
        return
    clips = read_clips(options.clips)
    both, plans = plan_stages(clips, options.cache)
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
        write_spec(options.out, spec)
    write_out_of_fold(options.out / FILE, fitted, specs[1], clips)
    write_exits(options.out)
    report += openset.train(both, clips, options.cache, options.out / "openset")
    write_sums(options.out)
    print("\n".join(report))
    if options.report:
        options.report.write_text("\n".join(report) + "\n", encoding="utf-8")


def plan_stages(clips: Clips, cache: Path) -> tuple[Table, list[Stage]]:
    """Extract the features, or read them from `cache`; return MusiCNN's, and the stages."""
    both = extract_table(clips.path, musicnn_features, cache / "musicnn.npz")
    fma = extract_table(clips.path, fma518_features, cache / "fma518.npz")
    msd = both.columns(slice(250))
    plans = [
        Stage("musicnn-few", musicnn_recipe("musicnn-msd"), msd, 16_000, 2.992, 3),
        Stage("fma518", fma518_recipe(), fma, FMA_RATE, 3.0, 10),
        Stage("musicnn-full", musicnn_recipe("musicnn"), both, 16_000, 2.992, 10),
    ]
    return both, plans


def write_spec(data: Path, spec: EnsembleSpec) -> None:
    """Write an ensemble into `data`."""
    path = data / "ensemble" / f"{spec.taxonomy}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(spec.model_dump_json(indent=2) + "\n", encoding="utf-8")


def write_out_of_fold(
    path: Path, fitted: Sequence[Fitted], default: EnsembleSpec, clips: Clips
) -> None:
    """Keep what thresholds are computed from, see `held_out`: held-out votes, labels, tracks."""
    arrays: dict[str, Floats] = {}
    for stage, spec in zip(fitted, default.stages, strict=True):
        name = stage.stage.name
        arrays[name] = np.stack(stage.votes)
        arrays[f"{name}-default"] = np.stack(default_votes(stage, spec.strangers))
        arrays[f"{name}-hidden"] = hidden_votes(stage, spec.strangers)
    hidden = [np.flatnonzero(trial.label == HIDDEN) for trial in fitted[0].trials[0]]
    numbers = {"label": clips.label, "number": clips.number, "hidden": np.concatenate(hidden)}
    halves = {name: votes.astype(np.float16) for name, votes in arrays.items()}
    save_file(halves | {name: each.astype(np.int16) for name, each in numbers.items()}, path)
    path.chmod(0o644)  # what is installed for all users must be theirs to read


def write_exits(data: Path) -> None:
    """Fit the exits of the ensembles in `data` to the held-out votes there."""
    for taxonomy in ("gtzan", "default"):
        spec = load_ensemble(taxonomy, data)
        write_spec(data, fit_exits(spec, read_held_out(spec, data), data / "heads"))


def fit_exits(spec: EnsembleSpec, held: HeldOut, heads: Path) -> EnsembleSpec:
    """Return the ensemble with thresholds that hold for all early exits together, see `exits`.

    A stage whose own head does not know all genres never decides early: it is sure of itself on
    music of genres that it cannot name.
    """
    stages = spec.stages
    pooled = [pool(held.votes[:i], stage.weights) for i, stage in enumerate(stages, 1)]
    may_decide = [set(load_card(heads / s.head).genres) >= set(spec.genres) for s in stages]
    tables = exit_thresholds(Answers.of(pooled, held.labels), held, may_decide)
    changed = [
        stage.model_copy(update={"exits": table})
        for stage, table in zip(stages, tables, strict=True)
    ]
    return spec.model_copy(
        update={"stages": tuple(changed), "protocol": f"{PROTOCOL} Exits: {EXITS}"}
    )


if __name__ == "__main__":
    main()
