r"""
The space in which keys of different facts are nearly orthogonal: that of $L^{-1} k$ with $L L^T = C$, the second moment of
the inputs of a linear map ("Knowledge in Superposition", AAAI 2025, section 3).

Axes: `n` keys, `m` width of a key.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


RIDGE = 1e-3  # of a second moment, as a share of its mean diagonal


class Whitening:
    r"""
    A second moment $C$, factored. Nothing that comes of it depends on the scale of $C$ but [`Whitening.solve`], which rank-one
    edits use where it cancels.

    Args:
        moment (`torch.Tensor` of shape `(m, m)`): $K K^T$, or the mean of it, of inputs $K$ that were seen.
        ridge (`float`, *optional*, defaults to `1e-3`):
            What is added to the diagonal, as a share of its mean. Moments of FFN inputs have condition numbers of up to 2e7,
            and the inverse of one of few tokens is noise. `0` is the papers' plain inverse.

    Raises:
        ValueError: If the ridge is negative, or is 0 and the moment is not of full rank.
    """

    def __init__(self, moment: torch.Tensor, ridge: float = RIDGE):
        if ridge < 0:
            raise ValueError(f"`ridge` is a share of the mean diagonal, 0 or more; got {ridge!r}.")
        moment = moment.double()
        size = len(moment)
        if ridge == 0:
            # What was summed up in single precision has no smaller eigenvalues that mean anything.
            values = torch.linalg.eigvalsh(moment)
            rank = int((values > values[-1] * size * torch.finfo(torch.float32).eps).sum())
            if rank < size:
                raise ValueError(
                    f"`ridge=0` needs a second moment of full rank; this one has rank {rank} of {size}. Collect it from more "
                    f"tokens (at least {size}, better ten times as many), or pass a ridge, such as {RIDGE}."
                )
        self.factor = torch.linalg.cholesky(moment + ridge * moment.diagonal().mean() * torch.eye(size).to(moment))

    def whiten(self, keys: torch.Tensor) -> torch.Tensor:
        r"""$L^{-1} k$ of keys of shape `(n, m)`, in double precision: dot products of these are $k_i^T C^{-1} k_j$."""
        return torch.linalg.solve_triangular(self.factor, keys.to(self.factor).T, upper=False).T

    def unit(self, keys: torch.Tensor) -> torch.Tensor:
        """Whitened keys of unit norm, in single precision: dot products of these are whitening cosines."""
        return F.normalize(self.whiten(keys), dim=-1).float()

    def solve(self, keys: torch.Tensor) -> torch.Tensor:
        r"""$C^{-1} k$ of keys of shape `(n, m)`, in double precision."""
        return torch.cholesky_solve(keys.to(self.factor).T, self.factor).T
