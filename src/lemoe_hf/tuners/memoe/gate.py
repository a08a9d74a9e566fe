"""The gate of MEMoE: which experts a token passes, by its hidden state and by what its text is about."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class TokenGate(nn.Module):
    r"""
    $G(x) = \mathrm{top}_k(\mathrm{softmax}(W_g [x ; a] + \epsilon))$ (MEMoE, arXiv 2405.19086), with the anchor $a$ of a text.

    Axes: `g` pieces of texts, `n` columns of each, `i` size of the input, `a` of the anchor, `e` experts.

    Args:
        num_experts (`int`): e.
        in_features (`int`): i.
        anchor_features (`int`): a; 0 for a gate without anchors.
    """

    def __init__(self, num_experts: int, in_features: int, anchor_features: int):
        super().__init__()
        self.anchor_features = anchor_features
        self.weight = nn.Parameter(torch.zeros(num_experts, in_features + anchor_features))

    def extra_repr(self) -> str:
        experts, features = self.weight.shape
        return (
            f"{experts} experts, in_features={features - self.anchor_features}, anchor_features={self.anchor_features}"
        )

    @torch.no_grad()
    def reset_parameters(self, seed: int = 0) -> None:
        if self.weight.device.type != "meta":
            start = torch.randn(self.weight.shape, generator=torch.Generator().manual_seed(seed))
            self.weight.copy_(start * self.weight.shape[1] ** -0.5)

    def forward(self, x: torch.Tensor, anchors: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """
        Args:
            x (`torch.Tensor` of shape `(g, n, i)`): What comes into the bypassed module.
            anchors (`torch.Tensor` of shape `(g, a)`): What each text is about.
            noise (`torch.Tensor` of shape `(g, n, e)`, *optional*): As in [`Mixture`].

        Returns:
            `torch.Tensor` of shape `(g, n, e)`: probabilities of all experts.
        """
        own, about = self.weight.to(x.dtype).split([x.shape[-1], self.anchor_features], 1)
        scores = x @ own.T
        if self.anchor_features:
            scores = scores + (anchors @ about.T)[:, None]
        return (scores if noise is None else scores + noise).softmax(-1)


def top(probabilities: torch.Tensor, k: int) -> torch.Tensor:
    """The `k` highest of each token, as they are, and zeros: of shape `(g, n, e)`."""
    values, experts = probabilities.topk(k, -1)
    return torch.zeros_like(probabilities).scatter(-1, experts, values)


def balance(probabilities: torch.Tensor, written: torch.Tensor) -> torch.Tensor:
    """
    The loss of Switch Transformers (equation 4): of `e` experts, e times the sum of the share of tokens that go to each by the
    mean of its probability; 1 where they are evenly spread.

    Args:
        probabilities (`torch.Tensor` of shape `(g, n, e)`), written (`torch.Tensor` of shape `(g, n)`): Of tokens that count.
    """
    of_tokens = probabilities[written]
    num = of_tokens.shape[-1]
    share = F.one_hot(of_tokens.argmax(-1), num).to(of_tokens).mean(0)
    return num * (share * of_tokens.mean(0)).sum()
