from importlib.metadata import version

import peft
import torch
import transformers

import lemoe_hf
from lemoe_hf.evaluation import versions


def test_versions_are_those_of_the_packages_that_run():
    found = versions()
    assert found.pop("python").count(".") == 2
    assert found == {package.__name__: package.__version__ for package in (lemoe_hf, torch, transformers, peft)}
    assert found["peft"] == version("peft")
