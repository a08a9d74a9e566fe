"""What the benchmarks leave out of their figures, and why."""

from __future__ import annotations

import importlib

import pytest

from lemoe_hf import Edit
from test_project import ROOT


@pytest.mark.parametrize(
    ("prompt", "is_kept"),
    [
        ("Toyota Corolla Spacio is made by", True),  # a longer name, of which nothing was edited
        ("Toyota Sports is made by", False),
        ("Is it Toyota, or another one?", False),
        ("The Toyotas are made by", True),
        ("Who makes the bus?", True),
    ],
)
def test_prompts_about_edited_subjects_do_not_count_for_locality(monkeypatch, prompt, is_kept):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    lifelong = importlib.import_module("lifelong")
    edits = [Edit(f"Who makes {name}?", "-", subject=name) for name in ("Toyota", "Toyota Sports", "Toyota Corolla")]
    (kept,) = lifelong.without_edited_neighbours([Edit("Who sings?", "-", locality_prompt=prompt)], edits)
    assert (kept.locality_prompt == prompt) is is_kept
