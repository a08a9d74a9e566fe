"""What was computed is found again, whatever was interrupted while it was written."""

from __future__ import annotations

import json

import pytest

from lemoe_hf.evaluation.journal import Journal


ENTRIES = [("a", "the first", {"x": 0.5}), ("b", "the second", {"x": 1.0, "y": 1 / 3})]


def test_what_is_written_is_found_again(tmp_path):
    journal = Journal(tmp_path / "work", "scores")
    assert journal == {}
    journal.write(ENTRIES[:1])
    journal.write(ENTRIES[1:])
    assert journal == Journal(tmp_path / "work", "scores") == {"a": {"x": 0.5}, "b": {"x": 1.0, "y": 1 / 3}}
    lines = [json.loads(line) for line in (tmp_path / "work" / "scores-0.jsonl").read_text().splitlines()]
    assert lines == [{"key": key, "about": about, "value": value} for key, about, value in ENTRIES]


def test_what_is_kept_under_another_name_is_another_matter(tmp_path):
    Journal(tmp_path, "scores").write(ENTRIES)
    assert Journal(tmp_path, "base") == {}


def test_without_a_folder_values_live_as_long_as_the_journal(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    journal = Journal(None, "scores")
    journal.write(ENTRIES)
    assert list(journal) == ["a", "b"]
    assert list(tmp_path.iterdir()) == []


def test_the_latest_value_of_a_key_counts(tmp_path):
    for value in (1, 2):
        Journal(tmp_path, "base").write([("a", "", value)])
    assert Journal(tmp_path, "base") == {"a": 2}


@pytest.mark.parametrize("cut", [1, 2, 10, 40])
def test_a_line_that_was_cut_off_is_as_if_it_had_not_been_written(tmp_path, cut):
    """And the line that is written next is whole."""
    Journal(tmp_path, "scores").write(ENTRIES)
    path = tmp_path / "scores-0.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    journal = Journal(tmp_path, "scores")
    assert list(journal) == (["a", "b"] if cut == 1 else ["a"])  # one byte less: all but the end of the line
    journal.write([("c", "the third", 3)])
    assert Journal(tmp_path, "scores") == journal


def test_each_process_writes_to_its_own_file_and_reads_all(tmp_path, monkeypatch):
    for rank, entry in enumerate(ENTRIES):
        monkeypatch.setenv("RANK", str(rank))
        Journal(tmp_path, "scores").write([entry])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scores-0.jsonl", "scores-1.jsonl"]
    assert list(Journal(tmp_path, "scores")) == ["a", "b"]


def test_what_another_process_has_half_written_is_left_to_it(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    Journal(tmp_path, "scores").write(ENTRIES)
    path = tmp_path / "scores-1.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    half = path.read_bytes()
    monkeypatch.setenv("RANK", "0")
    assert list(Journal(tmp_path, "scores")) == ["a"]
    assert path.read_bytes() == half
    assert list(tmp_path.iterdir()) == [path]
