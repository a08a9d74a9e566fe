"""Every example runs as it stands, and shows what it says that it shows."""

from __future__ import annotations


def test_quickstart(run, tmp_path):
    text = run("quickstart.py", "--adapter", tmp_path / "adapter")

def test_trainer(run, tmp_path):
    text = run("trainer.py", "--output", tmp_path)

def test_stream(run, tmp_path):
    text = run("stream.py", "--adapter", tmp_path)

def test_customers(run, tmp_path):
    text = run("customers.py", "--adapters", tmp_path)

def test_push(run, hub):
    text = run("push.py", "--repo", "anna/my-edits")

def test_evaluate(run, tmp_path):
    text = run("evaluate.py", "--adapter", tmp_path)

def test_sft(run, tmp_path):
    text = run("sft.py", "--output", tmp_path)
