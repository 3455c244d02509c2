"""A dataset by its name, from where it was fetched to, or from a folder that the user names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from reclass_plex.training.datasets import installed
from reclass_plex.training.datasets.catalogue import find_dataset
from reclass_plex.training.datasets.collection import Collection, DatasetError
from reclass_plex.training.datasets.fma import Subset, read_fma
from reclass_plex.training.datasets.gtzan import read_gtzan
from reclass_plex.training.datasets.magnatagatune import read_magnatagatune
from reclass_plex.training.datasets.msd import find_songs, read_msd
from reclass_plex.training.datasets.own_files import read_folders, read_listed
from reclass_plex.training.datasets.published import Component, Dataset


@dataclass(frozen=True)
class Reading:
    """How a dataset is read.

    `path` is what the user has instead of what was fetched: the folder of the audio (GTZAN,
    MagnaTagATune, a folder a genre), FMA's clips, the Million Song Dataset's files, or the CSV.
    `index` is Sturm's list of GTZAN's artists, `faults` keeps its faulty excerpts; `tags` are
    MagnaTagATune's.
    """

    path: Path | None = None
    index: Path | None = None
    faults: bool = False
    tags: Literal["top50", "all"] = "top50"


def read_dataset(name: str, folder: Path, how: Reading | None = None) -> Collection:
    """Read a dataset of the catalogue; `folder` is that of all datasets.

    "library" is read by `library.read_library`, as it needs the store. Raises DatasetError, saying
    how to get what is missing, and FileError.
    """
    how = how or Reading()
    dataset = find_dataset(name)
    if name == "gtzan":
        place = how.path or installed.require(dataset.components[0], folder, dataset)
        return read_gtzan(place, index=how.index, faults=how.faults)
    if name.startswith("fma-"):
        subset: Subset = name.removeprefix("fma-")  # type: ignore[assignment]
        metadata, clips = dataset.components
        return read_fma(
            installed.require(metadata, folder, dataset),
            subset,
            how.path or _if_there(clips, folder),
        )
    if name.startswith("msd-"):
        return _read_msd(dataset, folder, how)
    if name == "magnatagatune":
        labels, clips, _ = dataset.components
        return read_magnatagatune(
            installed.require(labels, folder, dataset),
            how.path or _if_there(clips, folder),
            tags=how.tags,
        )
    if how.path is None:
        raise DatasetError(f"{name}: where is it? {dataset.get}")
    if name == "folders":
        return read_folders(how.path)
    if name == "table":
        return read_listed(how.path)
    raise DatasetError(f"{name}: is read with the store; {dataset.get}")


def _read_msd(dataset: Dataset, folder: Path, how: Reading) -> Collection:
    labels, songs, _ = dataset.components
    place = installed.require(labels, folder, dataset)
    file = place / labels.files[0].name.removesuffix(".zip")
    return read_msd(file, how.path or _artists(songs, folder), dataset.name)


def _artists(songs: Component, folder: Path) -> Path | None:
    place = _if_there(songs, folder)
    return None if place is None else place / songs.files[0].name


def features_folder(dataset: Dataset, folder: Path) -> Path:
    """Return where the published features of a dataset are. Raises DatasetError."""
    for component in dataset.components:
        if component.part == "features":
            return find_songs(installed.require(component, folder, dataset))
    if dataset.name.startswith("fma-"):
        return installed.require(dataset.components[0], folder, dataset)
    raise DatasetError(f"{dataset.name}: no features are published of it; extract them")


def _if_there(component: Component, folder: Path) -> Path | None:
    return folder / component.name if installed.is_installed(component, folder) else None
