"""What a training run keeps so that it can be killed at any time: each file wholly old or new.

A checkpoint is one safetensors file, with what JSON can hold in its metadata: parts that belong
together cannot come apart.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reclass_plex.errors import ConfigError, FileError, Unreadable
from reclass_plex.files import naming_errors
from reclass_plex.networks import parse_spec
from reclass_plex.training.approaches.base import Model, Round, State

FACTS = "facts"


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is never seen half written, not even after a power cut."""
    with naming_errors(path, writing=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)


def write_json(path: Path, data: object) -> None:
    """Write `data` as JSON for people."""
    write_whole(path, (json.dumps(data, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:  # noqa: ANN401 (any JSON)
    """Read a JSON file. Raises FileError, naming it."""
    try:
        with naming_errors(path, writing=False):
            return json.loads(path.read_bytes())
    except ValueError as error:
        raise Unreadable(path, f"is no JSON: {error}") from None


def save_state(path: Path, state: State) -> None:
    """Write a state."""
    from safetensors.torch import save

    # Copies: safetensors refuses tensors that share memory, as the best and the newest may.
    tensors = {name: tensor.contiguous().clone() for name, tensor in state.tensors.items()}
    write_whole(path, save(tensors, {FACTS: json.dumps(state.facts)}))


def load_state(path: Path) -> State | None:
    """Read a state, None if there is none. Raises Unreadable if it is damaged."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {})[FACTS])
            # Copies lie where torch puts tensors, as they did before: at other addresses, on some
            # processors, sums end in other bits.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            return State(tensors, facts)
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise Unreadable(path, f"is damaged: {error}; delete it to begin that part anew") from None


class FileKeeper:
    """Keeps the state of one fit in a file, at most every `every` seconds."""

    def __init__(self, path: Path, every: float, tell: Callable[[Round], None]) -> None:
        self._path, self._every, self._tell = path, every, tell
        self._saved = time.monotonic()

    def load(self) -> State | None:
        """Return what was kept last."""
        return load_state(self._path)

    def save(self, state: State, *, done: bool = False) -> None:
        """Keep a state, unless the last one is young."""
        if done or time.monotonic() - self._saved >= self._every:
            save_state(self._path, state)
            self._saved = time.monotonic()

    def tell(self, line: Round) -> None:
        """Show a line of the learning curve."""
        self._tell(line)


def model_state(model: Model) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a model as tensors and as what JSON can hold."""
    facts = {
        "kind": model.kind,
        "hidden": list(model.hidden),
        "limit": model.limit,
        "layer_weights": list(model.layer_weights),
        "trees": model.trees,
        "network": None if model.network is None else model.network.model_dump(mode="json"),
    }
    return dict(model.tensors), facts


def restore_model(state: State) -> Model:
    """Return the model of `model_state`. Raises ConfigError."""
    facts = state.facts
    try:
        network = facts["network"]
        return Model(
            facts["kind"], state.tensors, tuple(facts["hidden"]), facts["limit"],
            tuple(facts["layer_weights"]), facts["trees"],
            None if network is None else parse_spec(network),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"a model was kept in a form that is not known: {error}") from None


def require_empty(folder: Path) -> None:
    """Raise FileError unless `folder` is free for a new run.

    What `write_whole` left of its first file when it was killed does not count.
    """
    with naming_errors(folder, writing=True):
        folder.mkdir(parents=True, exist_ok=True)
        if any(not path.match(".*.part") for path in folder.iterdir()):
            raise FileError(folder, "is not empty: name a new folder, or --resume this one")
