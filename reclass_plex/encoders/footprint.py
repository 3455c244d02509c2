"""How much memory an encoder takes, known before it is loaded.

Its network is made on torch's meta device, where tensors have shapes but no values, and two windows
run through it, as on a GPU, while the bytes of all tensors alive are counted. So the figures follow
the code, and cost a second and no memory. What they leave out: buffers inside of kernels, and
blocks that the allocator does not fill (`memory.MARGIN` is for these).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from reclass_plex.encoders import clap, jmla, mert
from reclass_plex.encoders.transformer import narrow_weights
from reclass_plex.memory import Footprint

TRACED_WINDOWS = 2  # one alone would not show what only batches need


def mert_footprint(
    config: mert.MertConfig, layers: tuple[int, ...], dtype: torch.dtype
) -> Footprint:
    """Return what a MERT takes that is loaded with `layers`, in windows of 5 s."""
    with torch.device("meta"):
        network = mert.MertNetwork(config, layers)
    windows = _empty_windows(mert.RATE * mert.WINDOW_SECONDS)
    return _footprint(network, dtype, lambda: network(windows))


def jmla_footprint(config: jmla.VitConfig, dtype: torch.dtype) -> Footprint:
    """Return what JMLA's backbone takes, in windows of 30 s."""
    with torch.device("meta"):
        network = jmla.JmlaNetwork(config)
    windows = _empty_windows(jmla.RATE * jmla.WINDOW_SECONDS)
    return _footprint(network, dtype, lambda: network(jmla.log_mel(windows)))


def clap_footprint(config: Any, dtype: torch.dtype) -> Footprint:  # noqa: ANN401 (transformers')
    """Return what CLAP takes, its text side included, in windows of 10 s; `config` a ClapConfig.

    transformers computes in float32 what is not sensitive in `dtype`, and keeps copies of weights
    in it for the length of a call. The window is counted in float32: an upper bound.
    """
    from transformers import ClapModel

    with torch.device("meta"):
        model: Any = ClapModel(config)
    model.eval()
    images = torch.empty(TRACED_WINDOWS, 1, 1001, config.audio_config.num_mel_bins, device="meta")
    footprint = _footprint(
        model, torch.float32, lambda: model.audio_model(input_features=images).pooler_output
    )
    copies = 0 if dtype == torch.float32 else dtype.itemsize * _count(model.parameters())
    # The spectrogram comes before: samples, frames of them, and both parts of the spectrum.
    spectrogram = clap.WINDOW * 4 + 1001 * (1024 * 4 + 513 * (8 + 8 + 4))
    return Footprint(footprint.weights + copies, max(footprint.window, spectrogram))


@contextmanager
def counted_bytes() -> Iterator[Callable[[], int]]:
    """Count the bytes of tensors made inside; gives a function for the most alive at once."""
    with _Count() as count:
        yield lambda: count.most


class _Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts each piece of memory from the operation that makes it until nobody holds it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive = self.most = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 (torch's signature)
        before = {
            each.untyped_storage()._cdata
            for each in tree_leaves((args, kwargs))
            if isinstance(each, Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, Tensor) and each.untyped_storage()._cdata not in before:
                self._add(each.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.alive += size
        self.most = max(self.most, self.alive)
        weakref.finalize(storage, self._remove, size)

    def _remove(self, size: int) -> None:
        self.alive -= size


class AsOnGpu(TorchFunctionMode):
    """What a GPU does otherwise: batches at once, attention without a matrix of all pairs."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 (torch's signature)
        if func is functional.scaled_dot_product_attention:
            return torch.empty_like(args[0])
        if func == Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
            return True
        return func(*args, **(kwargs or {}))


def _footprint(network: nn.Module, dtype: torch.dtype, run: Callable[[], Tensor]) -> Footprint:
    narrow_weights(network, dtype)
    held = [*network.parameters(), *network.buffers()]
    with torch.no_grad(), counted_bytes() as most, AsOnGpu():
        run()
    weights = sum(each.numel() * each.element_size() for each in held)
    return Footprint(weights, most() // TRACED_WINDOWS)


def _count(parameters: Iterator[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _empty_windows(samples: float) -> Tensor:
    return torch.empty(TRACED_WINDOWS, round(samples), device="meta")
