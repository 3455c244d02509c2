"""What a GPU's failures come to. Its errors are raised here by hand: there may be no GPU."""

from __future__ import annotations

import pytest
import torch

from reclass_plex.config import EnsembleOptions
from reclass_plex.device import choose_device, device_errors, run_in_halves
from reclass_plex.ensemble import Ensemble
from reclass_plex.errors import DeviceError
from reclass_plex.records import Waveform


@pytest.mark.parametrize("fitting", [1, 2, 3, 7])
def test_what_does_not_fit_at_once_is_computed_in_parts(fitting: int) -> None:
    sizes = []

    def double(batch: torch.Tensor) -> torch.Tensor:
        if len(batch) > fitting:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(batch))
        return batch * 2

    batch = torch.arange(7.0)[:, None]
    assert torch.equal(run_in_halves(double, batch), batch * 2)
    assert max(sizes) <= fitting
    assert sum(sizes) == 7


def test_one_that_does_not_fit_is_told() -> None:
    def fail(batch: torch.Tensor) -> torch.Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")

    with (
        pytest.raises(DeviceError, match=r"memory is full: CUDA out of memory.*2 GiB$"),
        device_errors(),
    ):
        run_in_halves(fail, torch.zeros(4, 1))


@pytest.mark.parametrize(
    "message",
    ["CUDA error: an illegal memory access was encountered", "cuDNN error: INTERNAL_ERROR"],
)
def test_a_lost_context_is_told(message: str) -> None:
    with pytest.raises(DeviceError, match="the GPU failed"), device_errors():
        raise RuntimeError(message)


def test_an_error_of_ours_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="shapes"), device_errors():
        raise RuntimeError("shapes cannot be multiplied")


def test_the_gpu_is_used_where_there_is_one() -> None:
    assert choose_device("cpu") == "cpu"
    if torch.cuda.is_available():
        assert choose_device("auto") == choose_device("cuda") == "cuda"
    else:
        assert choose_device("auto") == "cpu"
        with pytest.raises(DeviceError, match=r"worker\.device is cuda"):
            choose_device("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_verdict_is_the_same_on_the_gpu() -> None:
    generator = torch.Generator().manual_seed(1)
    samples = torch.randn(30 * 22050, generator=generator).cumsum(0)
    samples = 0.5 * samples / samples.abs().max()
    waveform = Waveform(samples.numpy(), 22050, 0.0, 30.0)
    here, _ = Ensemble(EnsembleOptions()).classify(waveform)
    there, _ = Ensemble(EnsembleOptions(), "cuda").classify(waveform)
    assert [genre.name for genre in there.genres[:3]] == [genre.name for genre in here.genres[:3]]
    assert there.genres[0].confidence == pytest.approx(here.genres[0].confidence, abs=0.01)
