"""The fetched encoders of an ensemble: opened at need, shared by threads, within the memory.

On a GPU the windows of tracks that are heard side by side become one batch. Encoders that do not
fit into the memory together are loaded in turn: the least recently used one makes room.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from reclass_plex.audio_gpu import resample_to
from reclass_plex.device import Device
from reclass_plex.encoders import Encoder, Readout
from reclass_plex.encoders.batching import MOST_WINDOWS, Batched, share_encoder
from reclass_plex.encoders.musicnn import spread_indices
from reclass_plex.encoders.opening import encoder_footprint, open_encoder
from reclass_plex.errors import ModelError
from reclass_plex.memory import (
    Footprint,
    Residents,
    budget_bytes,
    share_memory,
    why_too_large,
)
from reclass_plex.models import find_model, why_missing
from reclass_plex.records import Waveform

ALL_THERE_IS = Readout()  # of an encoder that has nothing to choose
WAIT_SECONDS = 0.02  # that a batch waits for tracks which are about to come

Need = tuple[str, Readout]  # an encoder's name, and what is read of it


class Heard(NamedTuple):
    """An encoder, and its states (w, layers, d) on the CPU."""

    encoder: Encoder
    states: torch.Tensor


@dataclass(frozen=True)
class _Plan:
    """How encoders share memory: windows of a batch for each, and `residents` if in turn.

    `too_large` says why some do not fit by themselves.
    """

    budget: int  # bytes
    most_windows: Mapping[Need, int]
    residents: Residents[Encoder] | None
    too_large: Mapping[Need, str] = field(default_factory=dict)


class FetchedEncoders:
    """Opens what is needed of `needs`, when it is needed. Thread-safe.

    `models` is the folder of fetched models, None for the usual one; `memory_gib` the memory that
    they may take, the GPU's if they compute there, None for what is free on a GPU.
    """

    def __init__(
        self,
        models: Path | None,
        device: Device,
        needs: Sequence[Need] = (),
        memory_gib: float | None = None,
    ) -> None:
        self._models = models
        self._device = device
        self._needs = tuple(dict.fromkeys(needs))
        self._memory_gib = memory_gib
        self._open: dict[Need, Encoder] = {}
        self._lock = threading.Lock()
        self._plan = self._make_plan()

    def load(self, name: str, readout: Readout, dims: int | None = None) -> None:
        """Open an encoder now; its vectors are to have `dims` values, if that is said.

        Raises ModelError, and DeviceError if the GPU has no room for it.
        """
        with self._use((name, readout)) as encoder:
            if dims not in {None, encoder.dims}:
                raise ModelError(f"{name} gives {encoder.dims} values, and its head takes {dims}")

    @contextmanager
    def hear(
        self, name: str, readout: Readout, waveform: Waveform, windows: int
    ) -> Iterator[Heard]:
        """Give an encoder with its states on at most `windows`, spread over the waveform.

        Raises ModelError if it is missing or damaged, or answers with values that are not finite.
        """
        with self._use((name, readout)) as encoder, ExitStack() as stack:
            batched = encoder if isinstance(encoder, Batched) else None
            if batched is not None:
                stack.enter_context(batched.expected())
            cut = encoder.cut(resample_to(waveform, encoder.rate, self._device))
            chosen = cut[list(spread_indices(len(cut), windows))]
            states = encoder.encode(chosen).cpu()
            yield Heard(batched.encoder if batched is not None else encoder, states)

    @contextmanager
    def _use(self, need: Need) -> Iterator[Encoder]:
        plan = self._plan
        if plan.residents is not None:
            with plan.residents.use(str(need), plan.budget, lambda: self._load(need)) as encoder:
                yield encoder
            return
        with self._lock:
            if need not in self._open:
                self._open[need] = self._load(need)
            encoder = self._open[need]
        yield encoder

    def _load(self, need: Need) -> Encoder:
        name, readout = need
        if need in self._plan.too_large:
            raise ModelError(self._plan.too_large[need])
        encoder = open_encoder(
            self._folder(name), layers=readout.layers, pooling=readout.pooling, device=self._device
        )
        most = self._plan.most_windows.get(need, 1)
        return share_encoder(encoder, most_windows=most, wait_seconds=WAIT_SECONDS)

    def _folder(self, name: str) -> Path:
        folder = find_model(name, self._models)
        if folder is None:
            raise ModelError(why_missing(name, self._models) or f"{name} is not there")
        return folder

    def _make_plan(self) -> _Plan:
        """Share the memory.

        Raises DeviceError if an encoder does not fit a GPU even by itself: the CPU may have room.
        Where that computes already, no other place and no new process would help, and the encoder
        is one that cannot be opened.
        """
        if self._device == "cpu" and self._memory_gib is None:
            return _Plan(0, {}, None)
        footprints: dict[Need, Footprint] = {}
        for need in self._needs:
            with suppress(ModelError):  # said when it is opened
                folder = self._folder(need[0])
                footprints[need] = encoder_footprint(folder, need[1].layers, self._device)
        budget = budget_bytes(self._device, self._memory_gib)
        too_large: dict[Need, str] = {}
        for need, footprint in list(footprints.items()) if self._device == "cpu" else ():
            if footprint.weights > budget:
                too_large[need] = why_too_large(need[0], footprint.weights, budget)
                del footprints[need]
        share = share_memory(budget, list(footprints.values()), MOST_WINDOWS)
        most = dict(zip(footprints, share.most_windows, strict=True))
        residents = None if share.together else Residents[Encoder](budget)
        return _Plan(budget, most, residents, too_large)
