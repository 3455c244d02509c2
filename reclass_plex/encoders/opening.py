"""Which encoder lies in a model's folder, opened with what its readers need of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from reclass_plex.encoders.checkpoints import read_json
from reclass_plex.errors import ModelError, printable

if TYPE_CHECKING:
    import torch

    from reclass_plex.encoders import Encoder, Pooling
    from reclass_plex.memory import Footprint


def open_encoder(
    folder: Path,
    *,
    layers: tuple[int, ...] | None = None,
    pooling: Pooling = "mean",
    device: str = "cpu",
    dtype: torch.dtype | None = None,
) -> Encoder:
    """Load the encoder whose files are in `folder`, as `models.find_model` gives it.

    `layers` are hidden states, where the encoder has a choice; None for all. `pooling` is over the
    tokens of a window, where it has that choice. `dtype` is that of the matrix products; None
    chooses it. Its name is the folder's. Raises ModelError, naming the file, if anything of it is
    missing, damaged or another model's, or if it has no such layers or pooling.
    """
    name = folder.name
    kind = _kind(folder)
    if kind == "mert":
        from reclass_plex.encoders.mert import count_layers, load_mert

        _refuse(pooling != "mean", folder, f"a MERT has no pooling {pooling!r}, only 'mean'")
        chosen = tuple(range(count_layers(folder))) if layers is None else layers
        return load_mert(folder, chosen, name=name, device=device, dtype=dtype)
    _refuse(bool(layers), folder, f"{name} has no choice of layers, and {layers} are asked for")
    if kind == "jmla":
        from reclass_plex.encoders.jmla import load_jmla

        return load_jmla(folder, pooling, device=device, dtype=dtype)
    from reclass_plex.encoders.clap import load_clap

    _refuse(pooling != "mean", folder, f"a CLAP has no pooling {pooling!r}, only 'mean'")
    return load_clap(folder, device=device, dtype=dtype)


def encoder_footprint(folder: Path, layers: tuple[int, ...], device: str) -> Footprint:
    """Return what the encoder in `folder` will take on `device`, opened with `layers`.

    Reads only its configuration. Raises ModelError, naming the file.
    """
    from reclass_plex.encoders import footprint
    from reclass_plex.encoders.transformer import choose_dtype

    dtype = choose_dtype(device)
    kind = _kind(folder)
    if kind == "mert":
        from reclass_plex.encoders.mert import read_config

        return footprint.mert_footprint(read_config(folder), layers, dtype)
    if kind == "jmla":
        from reclass_plex.encoders.jmla import read_sizes

        return footprint.jmla_footprint(read_sizes(folder), dtype)
    from reclass_plex.encoders.clap import read_config as read_clap

    return footprint.clap_footprint(read_clap(folder), dtype)


def _kind(folder: Path) -> str:
    """Tell by config.json: MERT and CLAP name their kind there, OpenJMLA has none or only sizes."""
    path = folder / "config.json"
    kind = read_json(path).get("model_type") if path.exists() else None
    known = {"mert_model": "mert", "hubert": "mert", "clap": "clap", None: "jmla"}
    if not isinstance(kind, (str, type(None))) or kind not in known:
        raise ModelError(f"{printable(path)}: model_type is {kind!r}, which no encoder here reads")
    return known[kind]


def _refuse(wrong: bool, folder: Path, why: str) -> None:
    if wrong:
        raise ModelError(f"{printable(folder)}: {why}")
