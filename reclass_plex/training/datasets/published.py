"""What a dataset is made of, as it is published: components, files, licences. See `catalogue`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from reclass_plex.errors import ConfigError

Part = Literal["labels", "audio", "features"]
PARTS: tuple[Part, ...] = ("labels", "audio", "features")
Terms = Literal["free", "non-commercial", "each its own", "none"]


@dataclass(frozen=True)
class PublishedFile:
    """A file as it is published. `about` is its size in bytes, roughly, where `size` is None.

    `digest` is an algorithm of hashlib and a digest in hexadecimal, "sha1:...". `url` is None if
    there is no address that could be trusted to last.
    """

    name: str
    url: str | None
    about: int
    size: int | None = None
    digest: str | None = None

    @property
    def length(self) -> int:
        """Its size in bytes, as exactly as it is known."""
        return self.about if self.size is None else self.size


@dataclass(frozen=True)
class Component:
    """What is fetched and kept together.

    With an `archive` format the files are one archive, in order (MagnaTagATune's is cut in three),
    of `unpacked` bytes, roughly; without one they are kept as they are.
    """

    name: str
    part: Part
    files: tuple[PublishedFile, ...]
    archive: Literal["zip", "tar.gz"] | None
    unpacked: int

    @property
    def length(self) -> int:
        """What there is to transfer, in bytes."""
        return sum(file.length for file in self.files)


@dataclass(frozen=True)
class Dataset:
    """A dataset: how people know it, what it holds, under which licence, and how to get it.

    `get` says what to do where there is nothing to fetch, or where what is fetched is not all.
    """

    name: str
    title: str
    holds: str
    split: str
    licence: str
    terms: Terms
    source: str
    get: str
    components: tuple[Component, ...] = ()

    @property
    def must_accept(self) -> bool:
        """Whether the user has to agree to the terms before anything is fetched."""
        return self.terms != "free"

    def chosen(self, parts: tuple[Part, ...] = ()) -> tuple[Component, ...]:
        """Return the components of these parts, all if none is named. Raises ConfigError."""
        chosen = tuple(one for one in self.components if not parts or one.part in parts)
        if not chosen:
            has = ", ".join(dict.fromkeys(one.part for one in self.components))
            raise ConfigError(
                f"{self.name}: has no {' or '.join(parts)} to fetch; it has {has}"
                if has
                else f"{self.name}: there is nothing to fetch. {self.get}"
            )
        return chosen


def describe_terms(dataset: Dataset) -> str:
    """Return what the licence means for the user, in a sentence without a full stop."""
    meaning = {
        "free": "free to use and to pass on",
        "non-commercial": "not for commercial use",
        "each its own": "every track has its own licence, of which many forbid commercial use",
        "none": "nobody gave a licence: use it privately for research, never pass it on",
    }[dataset.terms]
    return f"{dataset.title}: {dataset.licence}: {meaning}"
