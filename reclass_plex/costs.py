"""What each stage of an ensemble costs on this machine: seconds a track, measured on real music.

`reclass-plex calibrate` measures; the figures are kept beside the store, one file an ensemble, and
hold as long as its fingerprint does. What comes with the package was measured elsewhere, and says
where (`Costs.machine`).
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import secrets
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reclass_plex.config import Config
from reclass_plex.ensemble import Ensemble
from reclass_plex.errors import ConfigError, FileError, ModelError, StoreError, printable
from reclass_plex.files import AUDIO_SUFFIXES, find_audio_files
from reclass_plex.models import DATA
from reclass_plex.records import Excerpt, Waveform
from reclass_plex.store import Store

NEVER_EARLY = 0.999999  # accuracy of early exits that no table promises: every stage listens
SHIPPED = DATA / "ensemble" / "costs.json"
ROUNDS = 3  # times that each track is heard; the fastest counts, the others met other work
LOOKED_AT = 20  # newest tracks of the store to look at for each that is wanted


class Costs(BaseModel):
    """Medians over `tracks` tracks, in seconds: `decode` to read one, `stages` for each to vote.

    A stage's seconds are its features and its head, building on what earlier stages computed; the
    fastest of `ROUNDS` rounds, since all else is what other programs cost. Reading counts once, as
    it came.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    taxonomy: str
    profile: str
    fingerprint: str  # of the ensemble that never leaves early
    decode: float = Field(ge=0, allow_inf_nan=False)
    stages: Mapping[str, float]
    tracks: int = Field(gt=0)
    device: str
    machine: str
    torch: str
    date: str

    def seconds(self, stages: Sequence[str]) -> list[float]:
        """Return the seconds of these stages. Raises ModelError if one was not measured."""
        missing = [name for name in stages if name not in self.stages]
        if missing:
            raise ModelError(
                f"no costs of {', '.join(missing)} are known; run reclass-plex calibrate"
            )
        return [self.stages[name] for name in stages]


def patient(config: Config) -> Config:
    """Return the configuration of the same ensemble, but with every stage heard on every track."""
    options = config.ensemble.model_copy(
        update={
            "early_exit_accuracy": NEVER_EARLY,
            "text_genres": (),
            "learned_genres": False,
        }
    )
    return config.model_copy(update={"ensemble": options})


def choose_tracks(
    paths: Sequence[Path], count: int, on_error: Callable[[FileError], object]
) -> list[Path]:
    """Return at most `count` audio files of `paths`, spread evenly over all that are there.

    What cannot be read goes to `on_error`. Raises ConfigError if no music is there.
    """
    found: list[Path] = []
    for file in find_audio_files(paths, AUDIO_SUFFIXES):
        if isinstance(file, FileError):
            on_error(file)
        else:
            found.append(file.path)
    if not found:
        raise ConfigError(f"{', '.join(map(printable, paths))}: no music is there")
    count = min(count, len(found))
    return [found[number * len(found) // count] for number in range(count)]


def newest_tracks(store: Path, count: int) -> list[Path]:
    """Return at most `count` files that the store learned of last and that are still there.

    Raises ConfigError where there are none.
    """
    newest: deque[Path] = deque(maxlen=count * LOOKED_AT)
    if store.exists():
        with Store.open(store) as opened:
            newest.extend(track.path for track in opened.iter_tracks(""))
    there = [path for path in reversed(newest) if path.is_file()][:count]
    if not there:
        raise ConfigError(
            "no track that is known is there to measure with: name some music, "
            "reclass-plex calibrate FOLDER"
        )
    return there


def measure_costs(
    paths: Sequence[Path],
    config: Config,
    ensemble: Ensemble,
    *,
    on_error: Callable[[FileError], object],
    should_stop: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.perf_counter,
    decode: Callable[[Path, Excerpt], Waveform] | None = None,
) -> Iterator[Costs]:
    """Let every stage of a `patient` ensemble listen to each path; yield the costs so far.

    One track after another, on one core; `decode` is as in `pipeline.listener`. The first track,
    and what follows one that could not be heard, is read and heard once more, to warm up: a process
    that reads may have to start. A file that cannot be heard goes to `on_error`, one that no stage
    votes on (silence) is passed over: if that leaves none, nothing is yielded. Raises ModelError or
    DeviceError.
    """
    from reclass_plex.audio import decode_excerpt

    read = decode or decode_excerpt
    ensemble.load()
    decoded: list[float] = []
    heard: list[dict[str, float]] = []
    warm = False
    for path in paths:
        if should_stop():
            return
        try:
            if not warm:
                ensemble.classify(read(path, ensemble.excerpt))
            started = clock()
            waveform = read(path, ensemble.excerpt)
            seconds = clock() - started
        except FileError as error:
            on_error(error)
            warm = False
            continue
        warm = True
        rounds = [ensemble.classify(waveform)[0].votes for _ in range(ROUNDS)]
        names = [stage.name for stage in ensemble.spec.stages]
        if any([vote.stage for vote in votes] != names for votes in rounds):
            continue
        decoded.append(seconds)
        heard.append(
            {name: min(votes[i].seconds for votes in rounds) for i, name in enumerate(names)}
        )
        yield _costs(decoded, heard, config, ensemble)


def _costs(
    decoded: Sequence[float],
    heard: Sequence[Mapping[str, float]],
    config: Config,
    ensemble: Ensemble,
) -> Costs:
    import torch

    names = [stage.name for stage in ensemble.spec.stages]
    each = {name: statistics.median(track[name] for track in heard) for name in names}
    return Costs(
        taxonomy=config.ensemble.taxonomy,
        profile=config.ensemble.profile,
        fingerprint=ensemble.fingerprint,
        decode=round(statistics.median(decoded), 5),
        stages={name: round(seconds, 5) for name, seconds in each.items()},
        tracks=len(heard),
        device=ensemble.device,
        machine=describe_machine(),
        torch=torch.__version__,
        date=time.strftime("%Y-%m-%d"),
    )


def describe_machine() -> str:
    """Return what the figures were measured on, for people: "2 cores, x86_64, Linux"."""
    return f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}"


def costs_path(config: Config) -> Path:
    """Return where the costs of the configured ensemble are kept."""
    options = config.ensemble
    name = f"costs-{options.taxonomy}-{options.profile}.json"
    return config.store.resolve().parent / name


def save_costs(path: Path, costs: Costs) -> None:
    """Write a file of costs, wholly or not at all. Raises StoreError, naming it."""
    copy = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        copy.write_text(costs.model_dump_json(indent=2) + "\n", encoding="utf-8")
        copy.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            copy.unlink(missing_ok=True)
        raise StoreError(f"{printable(path)}: cannot be written: {error}") from error


def load_costs(config: Config, fingerprint: str) -> tuple[Costs, bool]:
    """Return what was measured here for the ensemble of `fingerprint`, else what is shipped.

    And whether it was measured here.
    A file of ours for other models is passed over. Raises StoreError for one that cannot be read,
    ModelError where the package has no costs of this ensemble.
    """
    path = costs_path(config)
    try:
        own = Costs.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        own = None
    except (OSError, ValidationError) as error:
        raise StoreError(
            f"{printable(path)}: cannot be read ({_first_line(error)}); "
            "run reclass-plex calibrate, which writes it anew"
        ) from error
    if own is not None and own.fingerprint == fingerprint:
        return own, True
    return shipped_costs(config.ensemble.taxonomy, config.ensemble.profile), False


def shipped_costs(taxonomy: str, profile: str, file: Path = SHIPPED) -> Costs:
    """Return the costs that come with the package. Raises ModelError."""
    try:
        every = [Costs.model_validate(each) for each in json.loads(file.read_bytes())]
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{printable(file)}: cannot be read: {_first_line(error)}") from error
    for costs in every:
        if (costs.taxonomy, costs.profile) == (taxonomy, profile):
            return costs
    raise ModelError(
        f"the costs of taxonomy {taxonomy}, profile {profile}, are not known; "
        "run reclass-plex calibrate"
    )


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return error.errors()[0]["msg"]
    return str(error).partition("\n")[0]
