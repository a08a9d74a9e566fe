"""
Run PEFT's own tests of decoders, custom models and configs with the methods of this package in their place.

PEFT's tests come with its source distribution, of which pip fetches the version that is installed; nothing of them is
copied into this repository. The models that they take from the Hub are made here, tiny and random, under the same names.

    python tests/peft_suite/run.py [options of pytest]
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from lemoe_hf import LEMoEConfig


HERE = Path(__file__).parent
FILES = ["tests/test_config.py", "tests/test_custom_models.py", "tests/test_decoder_models.py"]


def fetch(folder: Path) -> Path:
    """PEFT's source distribution, unpacked; its tests made a package, as their relative imports need."""
    source = folder / f"peft-{version('peft')}"
    if not source.is_dir():
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "-d", str(folder)]
        subprocess.run([*pip, f"peft=={version('peft')}"], check=True)
        shutil.unpack_archive(f"{source}.tar.gz", folder)
        (source / "tests" / "__init__.py").touch()
        (source / "pytest.ini").touch()  # options of PEFT's own are not asked for
    return source


def make_models(folder: Path, configs: dict[str, PretrainedConfig]) -> None:
    for name, config in configs.items():
        if not (folder / name).is_dir():
            torch.manual_seed(0)
            AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder / name)


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    from lemoe_in_peft import CONFIG, DECODERS

    source = fetch(HERE.parent.parent / ".cache" / "peft")
    make_models(source, DECODERS)
    LEMoEConfig().save_pretrained(source / CONFIG)
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "lemoe_in_peft", *FILES, *sys.argv[1:]]
    # Threads that wait for each other cost tiny models a hundred times what they compute.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE}:{os.environ.get('PYTHONPATH', '')}"}
    sys.exit(subprocess.call(command, cwd=source, env=environment))
