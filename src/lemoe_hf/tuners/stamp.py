"""What is saved with an adapter's weights to tell whether they are whole, and what they belong to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from ..routing.frozen import Frozen


SAMPLED, MATRICES = 256, 16  # weights of the base model, and how many of its matrices they are from
TOLERATED = 0.1  # share of them that rounding may change, from one half precision to the other
DIGEST = 32  # bytes


class Stamp(Frozen):
    """
    Buffers: `scale` (1), the config's `output_scale`, 0 where none was measured; `next_edit` (1), the identifier of the next
    edit; `digest` (32), of everything stored beside it; `weights` (256), a sample of the base model's, NaN where it cannot
    be read; `vocabulary` (32), a digest of the tokenizer's first `num_tokens` (1). Zeros stand for what is not known.
    """

    scale: torch.Tensor
    next_edit: torch.Tensor
    digest: torch.Tensor
    weights: torch.Tensor
    vocabulary: torch.Tensor
    num_tokens: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.zeros(1, dtype=torch.float32))
        self.register_buffer("next_edit", torch.zeros(1, dtype=torch.int64))
        self.register_buffer("digest", torch.zeros(DIGEST, dtype=torch.uint8))
        self.register_buffer("weights", torch.zeros(SAMPLED, dtype=torch.bfloat16))
        self.register_buffer("vocabulary", torch.zeros(DIGEST, dtype=torch.uint8))
        self.register_buffer("num_tokens", torch.zeros(1, dtype=torch.int64))
        # Digests of files that hold, or held, this adapter: it was loaded from them, or saved to them.
        self.files: set[bytes] = set()
        self.here = self.weights  # a sample of the model that the adapter is on

    def put_on(self, sample: torch.Tensor) -> None:
        """Note a sample of the model that the adapter was just put on: until it is loaded, it is made for that one."""
        self.here, self.weights = sample, sample.to(self.weights.device)

    def seal(self, digest: bytes) -> None:
        """Note the digest of what is about to be saved."""
        self.digest = self.digest.new_tensor(list(digest))
        self.files.add(digest)


def digest_of(layers: Iterable[Mapping[str, torch.Tensor]]) -> bytes:
    """
    Digest of everything that an adapter has stored, but its stamp: names, dtypes, shapes and bytes of tensors.

    Args:
        layers (`Iterable` of `Mapping[str, torch.Tensor]`): The tensors of each layer, in whatever order, by names that tell
            neither layer nor adapter.
    """
    parts = []
    for tensors in layers:
        found = hashlib.sha256()
        for name, tensor in sorted(tensors.items()):
            if not tensor.numel():  # adapters of earlier formats do not have all of them
                continue
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        parts.append(found.digest())
    return hashlib.sha256(b"".join(sorted(parts))).digest()


@torch.no_grad()
def sample_of(model: nn.Module) -> torch.Tensor:
    """
    Some weights of a base model, in bfloat16, so that a model loaded in half precision has the same: shape `(256,)`.

    They are NaN where weights are offloaded or packed, as in quantised models.
    """
    added = {id(weight) for module in model.modules() for weight in weights_of_adapters(module)}
    matrices = [weight for weight in model.parameters() if weight.dim() > 1 and id(weight) not in added]
    sample = torch.full((SAMPLED,), torch.nan)
    for place, each in enumerate(torch.linspace(0, len(matrices) - 1, MATRICES).long().tolist() if matrices else ()):
        weight, part = matrices[each], SAMPLED // MATRICES
        if type(weight) is nn.Parameter and weight.is_floating_point() and weight.device.type != "meta":
            index = torch.linspace(0, weight.numel() - 1, part, dtype=torch.float64).long().to(weight.device)
            sample[place * part : (place + 1) * part] = weight.detach().reshape(-1)[index].float().cpu()
    return sample.bfloat16()


def weights_of_adapters(module: nn.Module) -> Iterator[nn.Parameter]:
    """The weights that an adapter of any method has put into a module."""
    if isinstance(module, AuxiliaryTrainingWrapper):
        yield from module.modules_to_save.parameters() if hasattr(module, "modules_to_save") else ()
    if isinstance(module, BaseTunerLayer):
        for name in (*module.adapter_layer_names, *module.other_param_names):
            held = getattr(module, name, None)
            yield from held.parameters() if isinstance(held, nn.Module) else ()


def differ(sample: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether samples are of different weights, as far as both can be read."""
    sample, other = sample.cpu(), other.cpu()
    known = ~(sample.isnan() | other.isnan())
    return bool((sample[known] != other[known]).sum() > TOLERATED * known.sum())
