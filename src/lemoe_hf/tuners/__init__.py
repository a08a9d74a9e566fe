"""
PEFT methods, one package each; what they share stands beside them, and knows none of them. Importing this registers them with
PEFT.
"""

from typing import Any

from ..registration import register
from .lemoe import LEMoEConfig, LEMoEModel


def push(model: Any, *args: Any, **kwargs: Any) -> Any:
    from ..editing.push import push_model  # brings Trainer along, which is seldom wanted

    return push_model(model, *args, **kwargs)


register("lemoe", LEMoEConfig, LEMoEModel, push)
