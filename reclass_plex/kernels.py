"""The tangent kernel: what a network with one inner layer becomes when its width has no bound.

Gradient descent then moves its weights so little that it fits a linear model of its gradients
(Jacot, Gabriel and Hongler, 2018). With ReLUs, d inputs and biases, these gradients of two inputs
have the product

    k(x, c) = k1(x, c) + u k0(x, c) + 1,  with u = x . c / d + 1,

where k0 and k1 are the arc-cosine kernels of order 0 and 1 (Cho and Saul, 2009): with t the angle
between (x, sqrt(d)) and (c, sqrt(d)), and |x|^2 short for x . x / d + 1,

    k0 = (pi - t) / pi,  k1 = |x| |c| (sin t + (pi - t) cos t) / pi.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def tangent_kernel(x: Tensor, centres: Tensor) -> Tensor:
    """Return k (n, m) float64 for `x` (n, d) and `centres` (m, d), of standardised features."""
    # In float64: near an angle of 0 a cosine tells little of it.
    x, centres = x.double(), centres.double()
    d = x.shape[1]
    u = x @ centres.T / d + 1
    lengths = [(part.square().sum(1) / d + 1).sqrt() for part in (x, centres)]
    scale = torch.outer(*lengths)
    cosine = (u / scale).clamp(-1, 1)
    rest = math.pi - torch.arccos(cosine)
    k1 = scale * ((1 - cosine.square()).sqrt() + rest * cosine)
    return (k1 + u * rest) / math.pi + 1


def kernel_logits(z: Tensor, centres: Tensor, weight: Tensor) -> Tensor:
    """Return (n, k) in the type of `z` (n, d): k(z, `centres`) (n, m) times `weight` (m, k)."""
    return (tangent_kernel(z, centres) @ weight.double()).to(z.dtype)
