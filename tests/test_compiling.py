"""A compiled network gives what it gave before, and one that cannot be compiled, too."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn

from reclass_plex.encoders.compiling import CompiledNetwork, compiled
from reclass_plex.encoders.mert import Mert, MertConfig


class Twice(nn.Module):
    """What is compiled here: the path is tested, not the compiler."""

    def forward(self, windows: Tensor) -> Tensor:
        if len(windows) > 100:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return windows * 2


def tiny_mert(device: str) -> Mert:
    config = MertConfig(32, 3, 4, 48, (16,) * 7)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(shape, generator=generator) * 0.1 + (len(shape) == 1)
        for name, shape in config.tensor_shapes().items()
    }
    return Mert(config, tensors, (1, 3), device=device, dtype=torch.float32)


def test_what_cannot_be_compiled_computes_as_before(caplog: pytest.LogCaptureFixture) -> None:
    def backend(graph: torch.fx.GraphModule, inputs: object) -> object:
        raise RuntimeError("Cannot find a working triton installation\nand more")

    network = CompiledNetwork(Twice(), "mert-95m", backend=backend)
    with caplog.at_level(logging.WARNING, "reclass_plex"):
        for _ in range(3):
            assert network(torch.ones(2, 3)).tolist() == [[2.0] * 3] * 2
    assert not network.is_compiled
    (record,) = caplog.records
    assert record.getMessage().startswith("mert-95m is not compiled, and computes as before: ")
    assert "\n" not in record.getMessage()


def test_what_is_compiled_is_the_same_for_any_batch() -> None:
    seen = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> object:
        seen.append(graph)
        return graph.forward

    network = CompiledNetwork(Twice(), "mert-95m", backend=backend)
    for count in (3, 4, 7):
        assert torch.equal(network(torch.ones(count, 3)), torch.full((count, 3), 2.0))
    assert network.is_compiled
    assert len(seen) == 1, "compiled anew for each batch size"


def test_a_lack_of_memory_is_no_failure_of_the_compiler() -> None:
    network = CompiledNetwork(Twice(), "mert-95m", backend="eager")
    with pytest.raises(torch.cuda.OutOfMemoryError):
        network(torch.ones(101, 3))
    assert network(torch.ones(2, 3)).tolist() == [[2.0] * 3] * 2


def test_only_encoders_on_a_gpu_are_compiled() -> None:
    encoder = tiny_mert("cpu")
    network = encoder.network
    assert compiled(encoder) is encoder
    assert encoder.network is network
    encoder.device = "cuda"  # as if
    assert compiled(encoder) is encoder
    assert isinstance(encoder.network, CompiledNetwork)


@pytest.mark.filterwarnings("ignore")  # of the compiler, about its own parts
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_it_gives_the_same() -> None:
    plain, quick = tiny_mert("cuda"), compiled(tiny_mert("cuda"))
    windows = 0.1 * torch.randn(3, 24_000, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(quick.encode(windows), plain.encode(windows), rtol=1e-3, atol=1e-3)
