"""Figures of a superposition report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .superposition import off_diagonal


if TYPE_CHECKING:
    from .superposition import SuperpositionReport


def draw(report: SuperpositionReport, path: str | Path, profile: Sequence[dict[str, float]] = ()) -> None:
    """
    Draw the matrix P, the cosines in both spaces and, if there is one, the layer profile.

    Args:
        path (`str` or `Path`): Where to, in a format that its ending names, such as `.svg` or `.png`.

    Raises:
        ImportError: If Matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # without pyplot, which would look for a display
    except ImportError:
        raise ImportError("Figures need Matplotlib: `pip install lemoe_hf[plot]`.") from None
    panels = 3 if profile else 2
    figure = Figure(figsize=(5 * panels, 4), layout="constrained")
    axes = figure.subplots(1, panels)
    image = axes[0].imshow(report.matrices.p.numpy(), cmap="RdBu_r", vmin=-1, vmax=1)
    axes[0].set(title=f"p of {len(report.edits)} facts, layer {report.layer}", xlabel="fact j", ylabel="edit i")
    figure.colorbar(image, ax=axes[0])
    for name in ("whitening", "activation"):
        cosines = off_diagonal(getattr(report.matrices, name)).numpy()
        axes[1].hist(cosines, bins=80, range=(-1, 1), density=True, alpha=0.6, label=f"{name} space")
    axes[1].set(title="Cosines of different facts", xlabel="cosine", yscale="log")
    axes[1].legend()
    if profile:
        layers = [row["layer"] for row in profile]
        axes[2].plot(layers, [row["kurtosis"] for row in profile], marker="o", label="kurtosis of p")
        axes[2].set(title="Layer by layer", xlabel="layer", ylabel="kurtosis")
        second = axes[2].twinx()
        second.plot(layers, [row["mean_abs"] for row in profile], marker="s", color="tab:orange")
        second.set_ylabel("mean |p|", color="tab:orange")
    figure.savefig(path)
