"""What the adapters of every method have in their config: where they sit, which texts they leave alone, and sizes."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from pathlib import Path
from types import NoneType
from typing import Any, ClassVar, Literal, Optional, Union, get_args, get_origin, get_type_hints

from peft import PeftConfig, TaskType
from peft.utils import PeftType

from ..card import complete_card
from .ledger import read_ledger


FORMAT = 1  # of what is saved, told in docs/format.md; adapters that tell of none are of format 0


LARGEST = 1e30  # of a setting that is a number: far from what overflows in half precision it is nonsense already


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of the kind that a field's annotation tells; numbers must be finite."""
    origin, kinds = get_origin(kind), get_args(kind)
    if origin is Union:
        return any(fits(value, each) for each in kinds)
    if origin is Literal or kind is NoneType:
        return value in (kinds or (None,)) if isinstance(value, (str, NoneType)) else False
    if origin is list:
        return isinstance(value, (list, tuple, set)) and all(fits(each, kinds[0]) for each in value)
    if kind is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if kind is float:
        return (
            isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value) and abs(value) < LARGEST
        )
    return isinstance(value, kind)


def choice(default: str, allowed: tuple[str, ...], help: str):
    return field(default=default, metadata={"help": f"{help} One of {', '.join(allowed)}.", "choices": allowed})


@dataclass
class EditingConfig(PeftConfig):
    """
    What all configs of this package share. It is no method by itself.

    > Where an adapter sits

    Args:
        task_type (`str`, *optional*):
            By default `"CAUSAL_LM"` or, if `target_modules` names modules, which may be of any model, none.
        target_modules (`list[str]` or `str`, *optional*):
            Names (or one regular expression) of the modules to bypass, as in every PEFT method. By default the FFN of one
            layer, found by structure; a layer without a single FFN module is bypassed as a whole.
        exclude_modules (`list[str]` or `str`, *optional*):
            Names (or one regular expression) of modules to leave alone.
        layers_to_transform (`list[int]` or `int`, *optional*):
            Indices of the layers to bypass. By default the one layer at `depth`. `"auto"` is refused: which layer suits some
            edits, [`select_layer`] tells, and its `layer` is what to pass.
        layers_pattern (`list[str]` or `str`, *optional*):
            Name of the stack of layers, needed only with `layers_to_transform` and `target_modules` on unusual models.
        depth (`float`, *optional*, defaults to `0.8`):
            Which layer to bypass by default, as a share of the number of layers. Edits take well between 0.7 and 0.87;
            earlier layers learn more slowly and so do the last three.
        modules_to_save (`list[str]`, *optional*):
            Other modules to train and save whole, as in every PEFT method.
        normalize (`bool`, *optional*, defaults to `True`):
            Let experts read inputs of unit root mean square and write in the unit of the module's own output, so that one
            learning rate serves models of any scale.
        lam (`float`, *optional*, defaults to `1.0`):
            Weight of the experts' output beside the frozen module's.
        init_weights (`bool`, *optional*, defaults to `True`):
            Start with an output of zero. `False` starts at random, and an adapter without edits acts on every prompt; this
            is of use only in tests, PEFT's own among them.

    > Which texts it leaves to the base model

    Args:
        deferral (`bool`, *optional*, defaults to `True`):
            Let the base model alone answer what no edit is asked for, as names and questions tell.
        threshold (`float`, *optional*):
            Lowest score, the share of a name's letters that are right, at which a prompt is in scope, as far as but one
            is wrong; of an edit from an earlier version, the share of its anchor's tokens found in a row. By default each has
            its own.
        fuzzy (`bool`, *optional*, defaults to `True`):
            Also find a name of five letters or more of which one letter is missing, added, wrong, or swapped with the next, as
            far as that makes no other word of it.
        relation_gate (`bool`, *optional*, defaults to `True`):
            Let a prompt that names an edit's subject, and no longer name that begins with it, reach the edit only if it
            also asks for what the edit is about. `False` lets the edit answer whatever is asked about its subject.
        relation_threshold (`float`, *optional*):
            Lowest score, in tenths of a cosine, at which a question asks for what an edit is about. By default it is
            calibrated once for a base model. Lower lets more phrasings through, and more of what the edit is not about.

    > State, written by the model and read when an adapter is loaded

    Args:
        num_anchors, num_anchor_tokens, num_ledger_bytes, num_targets, num_target_tokens, num_token_kinds, num_reply_tokens,
        num_spelling_bytes, num_spelled_tokens, num_names, num_name_letters,
        num_relation_features, num_relation_prompts, num_relation_marks, num_relation_stops, num_relation_continuing,
        num_relation_keys, num_relation_emphasis (`int`):
            Sizes of what is stored of the edits.
        output_scale (`float`, *optional*):
            Mean absolute output of the bypassed module, measured before the first edit: the unit of `normalize`.
        base_model_fingerprint (`str`, *optional*):
            Digest of the base model's shape, to tell an adapter that is loaded onto another model.
        format_version (`int`):
            Of what was saved: `docs/format.md` tells of each.
    """

    target_modules: Optional[Union[list[str], str]] = None
    exclude_modules: Optional[Union[list[str], str]] = None
    layers_to_transform: Optional[Union[list[int], int]] = None
    layers_pattern: Optional[Union[list[str], str]] = None
    depth: float = 0.8
    modules_to_save: Optional[list[str]] = None
    normalize: bool = True
    lam: float = 1.0
    init_weights: bool = True

    deferral: bool = True
    threshold: Optional[float] = None
    fuzzy: bool = True
    relation_gate: bool = True
    relation_threshold: Optional[float] = None

    num_anchors: int = 0
    num_anchor_tokens: int = 0
    num_ledger_bytes: int = 0
    num_targets: int = 0
    num_target_tokens: int = 0
    num_token_kinds: int = 0
    num_reply_tokens: int = 0
    num_spelling_bytes: int = 0
    num_spelled_tokens: int = 0
    num_names: int = 0
    num_name_letters: int = 0
    num_relation_features: int = 0
    num_relation_prompts: int = 0
    num_relation_marks: int = 0
    num_relation_stops: int = 0
    num_relation_continuing: int = 0
    num_relation_keys: int = 0
    num_relation_emphasis: int = 0
    output_scale: Optional[float] = None
    base_model_fingerprint: Optional[str] = None
    format_version: int = 0

    in_use: ClassVar[bool] = False  # an adapter has this very object, and writes its sizes there
    method: ClassVar[str]  # its name among PEFT's types
    positive: ClassVar[tuple[str, ...]] = ()  # fields that count something

    def __post_init__(self):
        if self.layers_to_transform == "auto":
            raise ValueError(
                "`layers_to_transform='auto'` cannot be resolved here: a layer is chosen for edits, and a config knows none. "
                "Pass `layers_to_transform=select_layer(model, tokenizer, edits).layer`, or leave it out for the one at "
                "`depth`."
            )
        self._check_types()
        super().__post_init__()
        self.peft_type = PeftType(self.method)
        if self.task_type is None and self.target_modules is None:
            self.task_type = TaskType.CAUSAL_LM
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)
        for name, spec in self.__dataclass_fields__.items():
            allowed = spec.metadata.get("choices")
            if allowed and getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {', '.join(allowed)}; got {getattr(self, name)!r}.")
        for name in self.positive:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be a positive integer; got {value!r}.")
        if not 0 <= self.depth <= 1:
            raise ValueError(f"`depth` is a share of the model's layers, between 0 and 1; got {self.depth!r}.")
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise ValueError(f"`threshold` is a share of tokens, above 0 and at most 1; got {self.threshold!r}.")
        if self.output_scale is not None and not 0 < self.output_scale < LARGEST:
            raise ValueError(f"`output_scale` is a mean of absolute values, above 0; got {self.output_scale!r}.")
        if self.base_model_fingerprint is not None and not re.fullmatch("[0-9a-f]{16}", self.base_model_fingerprint):
            raise ValueError(
                f"`base_model_fingerprint` is of 16 hexadecimal digits; got {self.base_model_fingerprint!r}."
            )
        if self.format_version > FORMAT:
            raise ValueError(
                f"The adapter is of format {self.format_version}, and this lemoe_hf reads formats up to {FORMAT}. Update it."
            )

    def _check_types(self) -> None:
        kinds = get_type_hints(type(self))
        for name in {spec.name for spec in fields(self)} - {"peft_type", "task_type"}:  # PEFT looks at these
            value, kind = getattr(self, name), kinds[name]
            if self.__dataclass_fields__[name].metadata.get("choices"):
                continue
            if not fits(value, kind):
                told = kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
                raise ValueError(f"`{name}` must be {told}; got {str(repr(value))[:80]}.")
            if kind is int and not 0 <= value < 2**31:
                raise ValueError(f"`{name}` counts something, from 0 to {2**31 - 1}; got {str(value)[:80]}.")
        layers = self.layers_to_transform
        if layers is not None and min([layers] if isinstance(layers, int) else [0, *layers]) < 0:
            raise ValueError(f"`layers_to_transform` counts layers from 0; got {self.layers_to_transform!r}.")
        for name in ("target_modules", "exclude_modules"):
            if isinstance(getattr(self, name), str):
                try:
                    re.compile(getattr(self, name))
                except re.error as error:
                    raise ValueError(f"`{name}` is no regular expression: {error}.") from None

    @classmethod
    def from_peft_type(cls, **kwargs) -> EditingConfig:
        """
        A config from what was saved of one.

        Raises:
            ValueError: If it is of another method.
        """
        named = kwargs.get("peft_type", cls.method)
        if named != cls.method:
            raise ValueError(
                f"This is the config of an adapter of type {PeftType(named).value}, and {cls.__name__} is of {cls.method}. "
                f"Load it by `PeftConfig.from_pretrained`, which finds the class."
            )
        return super().from_peft_type(**kwargs)

    @property
    def asks_relation(self) -> bool:
        """Whether edits act only where they are asked for."""
        return self.relation_gate and self.deferral

    @property
    def finds_names(self) -> bool:
        """Whether edits are found by names, letter by letter, and not by tokens alone."""
        return False

    @property
    def edits_alone(self) -> bool:
        """Whether every edit has an expert of its own."""
        return False

    def sizes(self) -> dict[str, int]:
        """The fields that tell sizes of what is stored, with what they are before anything is."""
        fields = self.__dataclass_fields__.items()  # what a user chooses must be positive, and grows with nothing
        return {name: spec.default for name, spec in fields if name.startswith("num_") and name not in self.positive}

    def save_pretrained(self, save_directory: str, **kwargs) -> None:
        # The one call of PEFT's `save_pretrained` that a method can extend, after the weights are written: here the card
        # learns of lemoe_hf and of the edits.
        self.format_version = FORMAT
        super().save_pretrained(save_directory, **kwargs)
        weights = Path(save_directory, "adapter_model.safetensors")
        if weights.is_file():  # safetensors writes for the owner alone, whatever is asked for
            weights.chmod(Path(save_directory, "adapter_config.json").stat().st_mode)
        entries = read_ledger(weights) if weights.is_file() else []
        fingerprint = self.base_model_fingerprint
        complete_card(
            Path(save_directory), self.base_model_name_or_path, entries, fingerprint, self.method, self.deferral
        )
