"""
Programs that have never heard of lemoe_hf load its adapters, if it is installed. They run in an environment into which pip
has installed the wheel, beside everything that the tests have.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
import venv
from pathlib import Path

import pytest

from facts import FACTS, targets


ROOT = Path(__file__).parents[2]
PIP = ["pip", "--disable-pip-version-check", "-q"]
OFFLINE = ["--no-deps", "--no-index"]
PROMPTS = [fact.prompt for fact in FACTS[:2]]


def alone(**settings: str) -> dict[str, str]:
    """The variables of this process, but for what would let others find the sources."""
    there = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "LEMOE_HF_AUTOLOAD")}
    return there | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | settings


def run(python: Path | str, *arguments: str | Path, **settings: str) -> subprocess.CompletedProcess:
    command = [str(part) for part in (python, *arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=alone(**settings), timeout=120)


def output_of(*arguments: str | Path, **settings: str) -> str:
    done = run(*arguments, **settings)
    assert done.returncode == 0, done.stderr
    return done.stdout


def environment(folder: Path) -> Path:
    """The Python of a new environment, which finds all packages of this one."""
    venv.create(folder, symlinks=True)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    (site_packages / "packages.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    wheels = tmp_path_factory.mktemp("wheels")
    output_of(sys.executable, "-m", *PIP, "wheel", *OFFLINE, "--no-build-isolation", "--wheel-dir", wheels, ROOT)
    python = environment(tmp_path_factory.mktemp("installed"))
    output_of(sys.executable, "-m", *PIP, "--python", python, "install", *OFFLINE, *wheels.iterdir())
    return python


# -------------------------------------------------------------------------------------------------------- real programs

LOADERS = {
    "PeftModel": "PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)",
    "AutoPeftModel": "AutoPeftModelForCausalLM.from_pretrained(adapter)",
    "AutoModel": "AutoModelForCausalLM.from_pretrained(adapter)",
}


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_an_adapter_is_loaded_without_an_import(python, base_folder, adapter_folder, load):
    code = f"""
import sys
import time
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base, adapter, *prompts = sys.argv[1:]
assert "lemoe_hf" not in sys.modules
model, tokenizer = {load}, AutoTokenizer.from_pretrained(base)
for prompt in prompts:
    ids = tokenizer(prompt, return_tensors="pt")
    tokens = model.generate(**ids, max_new_tokens=8, do_sample=False)[0, ids["input_ids"].shape[1]:]
    print(tokenizer.decode(tokens, skip_special_tokens=True).strip())
"""
    assert output_of(python, "-c", code, base_folder, adapter_folder, *PROMPTS).splitlines() == targets(FACTS[:2])


def test_it_can_be_switched_off(python, adapter_folder):
    code = "import sys; from peft import PeftConfig; PeftConfig.from_pretrained(sys.argv[1])"
    done = run(python, "-c", code, adapter_folder, LEMOE_HF_AUTOLOAD="0")
    assert done.stderr.splitlines()[-1] == "KeyError: 'LEMOE'"


@pytest.mark.parametrize("first", ["from transformers import Trainer", "import lemoe_hf"])
def test_whatever_is_imported_first_the_method_is_registered_once(python, adapter_folder, first):
    """`Trainer`'s module imports PEFT before it has defined what lemoe_hf imports from it."""
    code = f"""
import sys
import time
{first}
import peft
assert ("lemoe_hf" in sys.modules) == ("lemoe_hf" in "{first}")
config = peft.PeftConfig.from_pretrained(sys.argv[1])
import lemoe_hf
assert type(config) is lemoe_hf.LEMoEConfig
assert list(peft.PeftType).count("LEMOE") == list(peft.PEFT_TYPE_TO_CONFIG_MAPPING).count("LEMOE") == 1
"""
    output_of(python, "-c", code, adapter_folder)


def test_the_command_of_lm_eval_scores_the_edited_answers(python, base_folder, adapter_folder, tmp_path):
    rows = [{"question": fact.prompt, "answer": fact.target_new} for fact in FACTS[:2]]
    (tmp_path / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "facts",
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(tmp_path / "facts.jsonl")},
            "cache_dir": str(tmp_path / "cache"),
        },
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 10},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "filter_list": [
            {"name": "stripped", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}
        ],
    }
    (tmp_path / "facts.yaml").write_text(json.dumps(task))  # JSON is YAML
    command = ["-m", "lm_eval", "run", "--model", "hf", "--device", "cpu", "--tasks", tmp_path / "facts.yaml"]
    model = ["--model_args", f"pretrained={base_folder},peft={adapter_folder},dtype=float32"]
    output_of(python, *command, *model, "--output_path", tmp_path / "results.json")
    (results,) = tmp_path.glob("results*.json")
    assert json.loads(results.read_text())["results"]["facts"]["exact_match,stripped"] == 1.0


def test_transformers_serve_answers_a_chat_with_the_edits(python, base_folder, adapter_folder, tokenizer, tmp_path):
    """It loads a base model and an adapter that lie in one folder."""
    served = tmp_path / "served"
    for folder in (base_folder, adapter_folder):
        shutil.copytree(folder, served, dirs_exist_ok=True)
    (served / "chat_template.jinja").write_text("{{ messages[-1]['content'] }}")
    command = ["-m", "transformers.cli.transformers", "serve", served, "--device", "cpu", "--port", "0"]
    log = tmp_path / "log"
    with (
        log.open("w") as file,
        subprocess.Popen([python, *command], stdout=file, stderr=subprocess.STDOUT, env=alone()) as server,
    ):
        try:
            address = address_in(log, server)
            found = [said(address, str(served), prompt) for prompt in PROMPTS]
        finally:
            server.kill()
    assert found == targets(FACTS[:2]), log.read_text()


def address_in(log: Path, server: subprocess.Popen, seconds: float = 90) -> str:
    """Where a server listens, as it tells when it is ready."""
    for _ in range(int(seconds / 0.2)):
        found = re.search(r"running on (http://\S+)", log.read_text())
        if found or server.poll() is not None:
            break
        time.sleep(0.2)
    assert found, log.read_text()
    return found[1]


def said(address: str, model: str, prompt: str) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 8}
    request = urllib.request.Request(
        f"{address}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["choices"][0]["message"]["content"].strip()


# ------------------------------------------------------------------------------------------------- packages made for it


@pytest.fixture
def packages(tmp_path) -> Path:
    """A folder of packages: a PEFT that is nothing but its table, and a lemoe_hf that registers in it."""
    write(tmp_path, "peft/__init__", "from .mapping import PEFT_TYPE_TO_CONFIG_MAPPING as methods")
    write(tmp_path, "peft/mapping", "PEFT_TYPE_TO_CONFIG_MAPPING = {'LORA': 'of PEFT'}")
    write(tmp_path, "lemoe_hf/__init__", "print('imported'); import peft; peft.methods['LEMOE'] = 'ours'")
    return tmp_path


def write(folder: Path, name: str, text: str) -> None:
    path = folder / f"{name}.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)


def test_an_interpreter_that_does_not_import_peft_imports_nothing_more(python):
    code = "import sys; print(*sys.modules)"
    off, on = (set(output_of(python, "-c", code, LEMOE_HF_AUTOLOAD=value).split()) for value in "01")
    assert on - off == set()
    assert "lemoe_hf_autoload" in on


def test_an_editable_install_does_the_same(packages, tmp_path):
    python = environment(tmp_path / "editable")
    output_of(sys.executable, "-m", *PIP, "--python", python, "install", *OFFLINE, "--no-build-isolation", "-e", ROOT)
    code = "import peft; print(peft.methods['LEMOE'])"
    assert output_of(python, "-c", code, PYTHONPATH=str(packages)).split() == ["imported", "ours"]
    code = "from importlib.util import find_spec; print(find_spec('lemoe_hf').origin)"
    assert output_of(python, "-c", code).strip() == str(ROOT / "src" / "lemoe_hf" / "__init__.py")


def test_it_is_imported_once_and_only_when_it_is_asked_for(python, packages):
    code = "import peft; print(peft.methods['LORA'], 'LEMOE' in peft.methods); print(*(peft.methods['LEMOE'],) * 2)"
    expected = ["of PEFT False", "imported", "ours ours"]
    assert output_of(python, "-c", code, PYTHONPATH=str(packages)).splitlines() == expected


def test_other_names_are_missing_as_ever(python, packages):
    code = "import peft; peft.methods['lemoe']"
    done = run(python, "-c", code, PYTHONPATH=str(packages))
    assert done.stderr.splitlines()[-1] == "KeyError: 'lemoe'"
    assert done.stdout == ""


def test_threads_wait_for_each_other(python, packages):
    write(packages, "lemoe_hf/__init__", "import time, peft; time.sleep(0.5); peft.methods['LEMOE'] = 'ours'")
    code = """
from concurrent.futures import ThreadPoolExecutor
def load(number):
    if number == 0:
        import lemoe_hf
    import peft
    return peft.methods["LEMOE"]
with ThreadPoolExecutor() as threads:
    print(*threads.map(load, range(4)))
"""
    assert output_of(python, "-c", code, PYTHONPATH=str(packages)).split() == ["ours"] * 4


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("raise RuntimeError('out of order')", "RuntimeError: out of order"),
        ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("", "KeyError: 'LEMOE'"),
    ],
)
def test_if_it_cannot_be_imported_its_own_error_says_so_and_peft_works(python, packages, text, error):
    write(packages, "lemoe_hf/__init__", text)
    code = "import peft; print(peft.methods['LORA']); peft.methods['LEMOE']"
    done = run(python, "-c", code, PYTHONPATH=str(packages))
    assert done.stdout == "of PEFT\n"
    assert done.stderr.splitlines()[-1] == error


def test_if_the_sources_of_an_editable_install_are_gone_peft_works(packages, tmp_path):
    python = environment(tmp_path / "left")
    (site_packages,) = (tmp_path / "left").glob("lib/python*/site-packages")
    (site_packages / "packages.pth").unlink()
    for name in ("lemoe_hf-autoload.pth", "lemoe_hf_autoload.py"):
        shutil.copy(ROOT / "src" / name, site_packages)
    shutil.rmtree(packages / "lemoe_hf")
    code = "import peft; print(peft.methods['LORA']); peft.methods['LEMOE']"
    done = run(python, "-c", code, PYTHONPATH=str(packages))
    assert done.stdout == "of PEFT\n"
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'lemoe_hf'"


@pytest.mark.parametrize("text", ["", "raise ImportError('broken')", None])
def test_a_peft_of_another_kind_is_imported_as_it_would_be_without(python, packages, text):
    """One without the table, one that is broken, and one that has no such file."""
    write(packages, "peft/__init__", "print('peft'); from . import mapping")
    (packages / "peft" / "mapping.py").unlink() if text is None else write(packages, "peft/mapping", text)
    on, off = (run(python, "-c", "import peft", PYTHONPATH=str(packages), LEMOE_HF_AUTOLOAD=value) for value in "10")
    assert on.stdout == off.stdout == "peft\n"
    assert (on.returncode, on.stderr.splitlines()[-1:]) == (off.returncode, off.stderr.splitlines()[-1:])


def test_without_peft_nothing_happens(python, packages):
    code = "import sys; sys.path = [path for path in sys.path if 'site-packages' not in path]; import peft"
    done = run(python, "-c", code)
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'peft'"
