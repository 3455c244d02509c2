"""The models that can be fetched: what each is, where it is published, under which licence.

The catalogue is data. A file `catalogue.json` in the models' folder, of the form
`{"models": [...]}` with the keys of `Model`, adds models of the user's own or puts others in the
place of ours: a copy in half precision, say, or a later revision.

Sizes and digests are those that the publisher shows for the pinned revision. Where a small file
(a configuration, a vocabulary) has none published, it is trusted on first use: what came first
is written down beside the weights, and everything later is held to it.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from reclass_plex.errors import ModelError, printable

OWN_CATALOGUE = "catalogue.json"
PICKLES = (".bin", ".pth", ".pt")  # torch's own containers: read with weights_only, then converted
SAFE = ".safetensors"

# One plain name: no folder, nothing hidden, so that it can be put below any folder.
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
Name = Annotated[str, StringConstraints(pattern=_NAME)]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Record(BaseModel):
    """Base of what is read from JSON: unknown keys are errors, values never change."""

    # built at first use: most commands look for no model
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class PublishedFile(Record):
    """A file as it is published. `about` is its size in bytes, roughly, where `size` is None."""

    name: Name
    about: int = Field(gt=0)
    size: int | None = Field(default=None, gt=0)
    sha256: Digest | None = None

    @property
    def length(self) -> int:
        """Its size in bytes, as exactly as it is known."""
        return self.about if self.size is None else self.size


class Model(Record):
    """A model that can be fetched.

    `weights` names the one of `files` that holds the tensors. `mark` is a tensor's name and shape
    by which its weights are recognised. `terms`: whether the licence allows everything, forbids
    commercial use, or does not say.
    """

    name: Name
    repository: Annotated[str, StringConstraints(pattern=r"^[\w.-]+/[\w.-]+$")]
    revision: Annotated[str, StringConstraints(pattern=r"^[\w.-]+$")]
    files: tuple[PublishedFile, ...] = Field(min_length=1)
    weights: Name
    mark: tuple[str, tuple[int, ...]] | None = None
    licence: str
    terms: Literal["free", "non-commercial", "unclear"]
    purpose: str

    @property
    def must_accept(self) -> bool:
        """Whether the user has to accept the licence first."""
        return self.terms != "free"

    @property
    def converted(self) -> str:
        """The name of the weights once they are converted to safetensors."""
        path = PurePosixPath(self.weights)
        if path.suffix not in PICKLES:
            return self.weights
        # What transformers calls it; other names keep their stem.
        return f"model{SAFE}" if path.name == "pytorch_model.bin" else path.stem + SAFE

    @property
    def length(self) -> int:
        """What it takes on disk, and to transfer: converting does not change it noticeably."""
        return sum(file.length for file in self.files)


def _small(name: str, about: int) -> PublishedFile:
    return PublishedFile(name=name, about=about)


CATALOGUE = (
    Model(
        name="mert-95m",
        repository="m-a-p/MERT-v1-95M",
        revision="12af15fef9d0ac838c3f475bfbbf26d2060dd4f5",
        files=(
            _small("config.json", 2_000),
            PublishedFile(
                name="pytorch_model.bin",
                about=377_552_987,
                size=377_552_987,
                sha256="a2b8b747f72c06e0595aeae41ae5473f4364938c6b39b2c58be38c48e6bd3fcd",
            ),
        ),
        weights="pytorch_model.bin",
        mark=("feature_projection.projection.weight", (768, 512)),
        licence="CC-BY-NC-4.0",
        terms="non-commercial",
        purpose="music encoder of the second stage (profiles gpu and full)",
    ),
    Model(
        name="mert-330m",
        repository="m-a-p/MERT-v1-330M",
        revision="0e06c986db0527c0fd1b47181c40f006805e3de0",
        files=(
            _small("config.json", 2_000),
            PublishedFile(
                name="pytorch_model.bin",
                about=1_262_000_000,
                sha256="0c03774d821a6ad972cb48220b128a10ebea2c790116bd0fd35e5a013f8017f6",
            ),
        ),
        weights="pytorch_model.bin",
        mark=("feature_projection.projection.weight", (1024, 512)),
        licence="CC-BY-NC-4.0",
        terms="non-commercial",
        purpose="the larger MERT: a little better, three times the work",
    ),
    Model(
        name="jmla",
        repository="UniMus/OpenJMLA",
        revision="d190fe92a65051176b61b9e8f8f057e6d7781eb9",
        files=(
            PublishedFile(
                name="epoch_20.pth",
                about=345_508_821,
                size=345_508_821,
                sha256="cffdf796c0506b5dba4f48dfb1e8d0bbddac95545503cfbaa9661c9bddf07901",
            ),
        ),
        weights="epoch_20.pth",
        mark=("pos_embed", (1, 936, 768)),
        licence='"cc", which of them is not said',
        terms="unclear",
        purpose="music encoder of the third stage (profiles gpu and full)",
    ),
    Model(
        name="clap",
        repository="laion/larger_clap_music",
        revision="a0b4534a14f58e20944452dff00a22a06ce629d1",
        files=(
            _small("config.json", 700),
            _small("preprocessor_config.json", 600),
            _small("tokenizer.json", 2_110_000),
            _small("tokenizer_config.json", 1_400),
            _small("special_tokens_map.json", 300),
            _small("vocab.json", 798_000),
            _small("merges.txt", 456_000),
            PublishedFile(
                name="pytorch_model.bin",
                about=776_444_665,
                size=776_444_665,
                sha256="5c289311f4a030d768af7ffbfdecd01b008aa64824211899a4e59f4f9d154fd1",
            ),
        ),
        weights="pytorch_model.bin",
        mark=("audio_projection.linear1.weight", (512, 1024)),
        licence="Apache-2.0",
        terms="free",
        purpose="names genres from their words alone, for which no head was trained",
    ),
)


class _OwnCatalogue(Record):
    models: tuple[Model, ...]


def models_folder(named: Path | None = None) -> Path:
    """Return where fetched models are: `named`, or $XDG_DATA_HOME/reclass-plex/models."""
    data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    folder = named if named is not None else Path(data) / "reclass-plex" / "models"
    try:
        return folder.expanduser().absolute()
    except RuntimeError as error:
        raise ModelError(
            f"{printable(folder)}: whose home is meant is not known; set HOME, or models.folder"
            " in the configuration to a full path"
        ) from error


def load_catalogue(folder: Path) -> dict[str, Model]:
    """Return the models by name: ours, and those of `catalogue.json` in the models' folder.

    Raises ModelError, naming that file and the key, if it cannot be read.
    """
    models = {model.name: model for model in CATALOGUE}
    path = folder / OWN_CATALOGUE
    try:
        own = _OwnCatalogue.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return models
    except OSError as error:
        raise ModelError(f"{printable(path)}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ModelError(f"{printable(path)}: {key}: {first['msg']}") from None
    for model in own.models:
        if model.weights not in [file.name for file in model.files]:
            raise ModelError(
                f"{printable(path)}: {model.name}: {model.weights} is none of its files"
            )
        models[model.name] = model
    return models


def find_in_catalogue(name: str, folder: Path) -> Model:
    """Return the model of that name. Raises ModelError, naming those that there are."""
    models = load_catalogue(folder)
    if name not in models:
        raise ModelError(f"{name}: there is no such model; there are {', '.join(models)}")
    return models[name]
