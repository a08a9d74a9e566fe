"""What other packages say that nobody who runs a command can do anything about. All else that they say is left to them."""

from __future__ import annotations

import logging
import warnings


# By the logger: how a message begins, or goes on. PEFT and transformers import these packages wherever they are installed.
SAID = {
    "torchao": "Failed to load ",  # extensions for GPUs
    "torch.utils._pytree": "%s is an Enum subclass and is now natively supported",  # by torchao
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",  # faster with one more package
}


def be_quiet() -> None:
    """Leave out those messages; to be called before PEFT is imported."""
    for name, beginning in SAID.items():
        logger = logging.getLogger(name)
        if not any(isinstance(each, Unless) for each in logger.filters):
            logger.addFilter(Unless(beginning))
    # PEFT asks a model for it, and transformers complains.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)


class Unless:
    """Lets a message pass unless it begins like this."""

    def __init__(self, beginning: str):
        self.beginning = beginning

    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(self.beginning)
