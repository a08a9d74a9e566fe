"""Draw the pictures of the README from the committed results.

python benchmarks/plots.py
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
from report import RESULTS


DOCS = Path(__file__).parent.parent / "docs"

ANSWERS = {
    "its edit": "C0",
    "another edit of its subject": "C1",
    "any other edit": "C3",
    "the base model": "0.85",
}

matplotlib.rcParams.update(
    {"svg.hashsalt": "lemoe_hf", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
)


def read(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


def flat_in_the_number_of_edits() -> plt.Figure:
    """An edit, a search and a decoded token, against the number of edits."""
    figure, (edit, search, decode) = plt.subplots(1, 3, figsize=(9, 2.6), layout="constrained")
    steps = read("scale")["steps"]
    edit.plot([row["edits"] for row in steps], [row["cpu_seconds_per_edit"] for row in steps], lw=1)
    edit.set(title="an edit", xlabel="edits made", ylabel="CPU seconds", ylim=(0, None))
    routing = read("routing")["rows"]
    search.plot([row["anchors"] for row in routing], [row["search_ms"] for row in routing], "o-", ms=3, lw=1)
    search.set(title="routing a prompt", xlabel="anchors", ylabel="milliseconds", xscale="log", ylim=(0, None))
    serve = read("speed_serve")["rows"]
    for batch, style in ((1, "o-"), (8, "s--")):
        rows = [row for row in serve if row["batch"] == batch]
        decode.plot(
            [row["edits"] for row in rows],
            [row["decode_ratio"] for row in rows],
            style,
            ms=3,
            lw=1,
            label=f"batch {batch}",
        )
    decode.axhline(1.0, color="0.7", lw=0.8, zorder=0)
    decode.set(title="a decoded token", xlabel="edits", ylabel="times the base model's", xscale="log", ylim=(0.9, 1.1))
    decode.legend(frameon=False)
    return figure


def generality_against_other_questions() -> plt.Figure:
    """What is found of rephrasings, against what is kept of other questions about the same subjects."""
    figure, axes = plt.subplots(figsize=(4.2, 2.8), layout="constrained")
    default, *points = read("frontier")["points"]
    for name, style in (("generality", "o-"), ("free_generality", "s--")):
        rows = [[point["same_subject_kept"], point[name]] for point in points]
        axes.plot(*zip(*rows, strict=True), style, ms=3, lw=1, label=name.replace("_", " "))
        axes.plot(default["same_subject_kept"], default[name], "k*", ms=9, zorder=3)
    axes.set(xlabel="other questions kept", ylabel="rephrasings answered", xlim=(0, 1.01), ylim=(0.6, 1.01))
    axes.legend(frameon=False, loc="lower left", title="star: the default", alignment="left")
    return figure


def growing() -> plt.Figure:
    """Measures against the number of edits, the first hundred edits beside those of fine-tuning, and who answers what."""
    figure, (measures, first, answered) = plt.subplots(1, 3, figsize=(10, 2.8), layout="constrained")
    growth = read("growth")
    numbers = [point["edits"] for point in growth["points"]]
    for name, style in (("reliability", "o-"), ("generality", "s--"), ("locality", "^:")):
        measures.plot(numbers, [point["measures"][name] for point in growth["points"]], style, ms=3, lw=1, label=name)
    measures.set(title="all edits", xlabel="edits made", xscale="log", ylim=(0, 1.03))
    measures.legend(frameon=False, loc="lower left")

    first.plot(
        numbers, [point["measures"]["first_hundred"] for point in growth["points"]], "o-", ms=3, lw=1, label="LEMoE"
    )
    for baseline, style in (("ffn", "s--"), ("lora", "^:")):
        rows = read(f"baseline_{baseline}_zsre_1000")["first_hundred"]
        first.plot(
            [int(num) for num in rows], list(rows.values()), style, ms=3, lw=1, label=f"fine-tuning: {baseline}"
        )
    first.set(title="reliability of the first hundred", xlabel="edits made", xscale="log", ylim=(0, 1.03))
    first.legend(frameon=False, loc="lower left")

    kinds, left = list(growth["answered"]), [0.0] * len(growth["answered"])
    for answer, colour in ANSWERS.items():
        shares = [growth["answered"][kind].get(answer, 0.0) for kind in kinds]
        answered.barh(kinds, shares, left=left, color=colour, label=answer)
        left = [before + share for before, share in zip(left, shares, strict=True)]
    answered.invert_yaxis()
    answered.set(title=f"what answers, after {numbers[-1]:,} edits", xlim=(0, 1))
    answered.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.4, -0.1), ncols=2, fontsize=7)
    return figure


def more_edits_an_expert() -> plt.Figure:
    """Measures against the number of edits that share an expert."""
    figure, axes = plt.subplots(figsize=(4.2, 2.8), layout="constrained")
    rows = read("edits_per_expert")["rows"]
    lines = {
        "reliability": "o-",
        "generality": "s--",
        "free_generality": "v-.",
        "locality": "^:",
        "same_subject_kept": "x:",
    }
    for name, style in lines.items():
        label = "other questions kept" if name == "same_subject_kept" else name.replace("_", " ")
        values = [row["measures"][name] for row in rows]
        axes.plot([int(row["name"]) for row in rows], values, style, ms=3, lw=1, label=label)
    axes.set(xlabel="edits an expert", xscale="log", ylim=(0, 1.03))
    axes.legend(frameon=False, loc="lower left")
    return figure


FIGURES = {
    "flat": flat_in_the_number_of_edits,
    "frontier": generality_against_other_questions,
    "growth": growing,
    "edits_per_expert": more_edits_an_expert,
}


if __name__ == "__main__":
    for name, draw in FIGURES.items():
        figure = draw()
        figure.savefig(DOCS / f"{name}.svg", metadata={"Date": None})
        print(DOCS / f"{name}.svg")
