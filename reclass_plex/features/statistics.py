"""The seven statistics of a time series, in the published (alphabetical) order."""

from __future__ import annotations

import numpy as np
import torch

STATISTICS = ("kurtosis", "max", "mean", "median", "min", "skew", "std")


def summarise(series: torch.Tensor) -> torch.Tensor:
    """Return the statistics over time of `series` (batch, rows, frames): (batch, 7, rows).

    Moments are the population's (biased), kurtosis is Fisher's, all summed in float64. A
    constant row has neither skew nor kurtosis; it gets 0 and -3, as scipy gave in 2017.
    """
    values = series.double()
    mean = values.mean(-1)
    deviations = values - mean[..., None]
    squares = deviations.square()
    variance = squares.mean(-1)
    # scipy's test for a row that is constant but for the rounding of single precision
    constant = variance <= (torch.finfo(torch.float32).eps * mean).square()
    safe = torch.where(constant, 1.0, variance)
    skew = (squares * deviations).mean(-1) / safe.pow(1.5)
    kurtosis = squares.square_().mean(-1) / safe.square() - 3
    statistics = (
        torch.where(constant, -3.0, kurtosis),
        series.amax(-1),
        mean,
        median(series),
        series.amin(-1),
        torch.where(constant, 0.0, skew),
        variance.sqrt(),
    )
    return torch.stack([statistic.float() for statistic in statistics], dim=1)


def median(series: torch.Tensor) -> torch.Tensor:
    """Return numpy's median over time: the mean of the middle two for an even count."""
    ordered = sort_rows(series)
    count = series.shape[-1]
    return (ordered[..., (count - 1) // 2] + ordered[..., count // 2]) / 2


def sort_rows(rows: torch.Tensor) -> torch.Tensor:
    """Return `rows` (..., n) with each row in ascending order.

    On a CPU numpy sorts, without a copy between the two: its sort of floats is vectorised (AVX2,
    AVX-512, NEON), torch's sort, topk and kthvalue are not and take several times as long.
    """
    if rows.device.type == "cpu":
        return torch.from_numpy(np.sort(rows.numpy(), axis=-1))
    return rows.sort(dim=-1).values
