"""
PEFT methods, one package each; what they share stands beside them, and knows none of them. Importing this registers them with
PEFT.
"""

from importlib import import_module
from typing import Any

from ..registration import register
from .elder import ELDERConfig, ELDERModel
from .lemoe import LEMoEConfig, LEMoEModel
from .memoe import MEMoEConfig, MEMoEModel


def push(model: Any, *args: Any, **kwargs: Any) -> Any:
    # By its name: it is a part above this one, and brings Trainer along, which is seldom wanted.
    return import_module("lemoe_hf.editing.push").push_model(model, *args, **kwargs)


register("lemoe", LEMoEConfig, LEMoEModel, push)
register("memoe", MEMoEConfig, MEMoEModel, push)
register("elder", ELDERConfig, ELDERModel, push)
