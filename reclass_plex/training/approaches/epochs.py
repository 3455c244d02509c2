"""What every descent over epochs does alike: its random numbers and rates, a pass, mixup, its
checkpoints.

Epochs draw their random numbers from (seed, epoch), so that a run which goes on from a checkpoint
takes the same steps as one that was never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from reclass_plex.training.approaches.gpu import Precision
from reclass_plex.training.metrics import Labels

ADAM = "adam"  # the part of a checkpoint that is the optimiser's
WARM_UP = 0.1  # of the steps


@contextmanager
def epoch_numbers(seed: int, epoch: int, device: str) -> Iterator[np.random.Generator]:
    """Let torch draw an epoch's numbers, as the generator that is given does; then as before."""
    with torch.random.fork_rng([torch.cuda.current_device()] if device == "cuda" else []):
        torch.manual_seed(int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0]))
        yield np.random.default_rng([seed, epoch])


def rate_share(progress: float, floor: float = 0.0) -> float:
    """Return the share of the highest rate after `progress`, 0 to 1, of all steps.

    Linear warm-up, then cosine decay down to `floor`.
    """
    if progress < WARM_UP:
        return (progress + 1e-3) / (WARM_UP + 1e-3)
    falling = (progress - WARM_UP) / (1 - WARM_UP)
    return floor + (1 - floor) * (1 + math.cos(math.pi * falling)) / 2


def pass_over(
    count: int,
    batch: int,
    generator: np.random.Generator,
    optimiser: torch.optim.Optimizer,
    precision: Precision,
    set_rate: Callable[[int, int], float],
    loss_of: Callable[[Labels], Tensor],
) -> tuple[float, float]:
    """Take a step for each batch of `count` examples; return their mean loss and the last rate.

    `set_rate(step, steps)` gives the optimiser its rate and returns it.
    """
    order = generator.permutation(count)
    steps = -(-count // batch)
    total = rate = 0.0
    for step in range(steps):
        chosen = np.sort(order[step::steps])  # sorted: a mapped table is read forwards
        rate = set_rate(step, steps)
        with precision.context():
            loss = loss_of(chosen)
        optimiser.zero_grad()
        precision.step(loss, optimiser)
        total += float(loss.detach()) * len(chosen)
    return total / count, rate


def mix(
    generator: np.random.Generator, alpha: float, x: Tensor, target: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Blend each example with another of its batch (mixup: Zhang et al., 2018)."""
    share = float(generator.beta(alpha, alpha))
    other = torch.from_numpy(generator.permutation(len(x))).to(x.device)
    return (
        share * x + (1 - share) * x[other],
        share * target + (1 - share) * target[other],
        share * weights + (1 - share) * weights[other],
    )


def pack(
    optimiser: torch.optim.Optimizer, parts: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint: `parts` by name, and what the optimiser remembers."""
    tensors = {f"{part}.{n}": t for part, held in parts.items() for n, t in held.items()}
    for number, state in optimiser.state_dict()["state"].items():
        tensors |= {f"{ADAM}.{number}.{name}": v.detach().cpu() for name, v in state.items()}
    return tensors


def unpack(
    optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor], names: Collection[str]
) -> dict[str, dict[str, Tensor]]:
    """Give the optimiser its memory back, and return the parts of a checkpoint named `names`."""
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in (*names, ADAM)}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in parts.pop(ADAM).items():
        number, _, moment = name.partition(".")
        moments.setdefault(int(number), {})[moment] = tensor
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": moments, "param_groups": groups})
    return parts
