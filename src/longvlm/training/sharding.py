"""A model sharded over the processes that torchrun started (FSDP2), and its weights and optimizer gathered again.

Sharded here, and not by accelerate, which does so on accelerators alone: the same code runs, and is tested, on CPUs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def shard_model(model: PreTrainedModel, device: torch.device, num_processes: int, *, bf16: bool) -> None:
    """Shard a float32 model in place, its layers one by one; with `bf16` it computes in bfloat16."""
    mesh = init_device_mesh(device.type, (num_processes,))
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if bf16 else MixedPrecisionPolicy()
    layers = {name for part in (model.model.language_model, model.model.vision_tower) for name in _layer_classes(part)}
    for module in list(model.modules()):
        if type(module).__name__ in layers:
            fully_shard(module, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    model._is_accelerate_prepared = True  # or accelerate would put copies of the shards into DDP


def _layer_classes(part: nn.Module) -> set[str]:
    return set(getattr(part, "_no_split_modules", None) or ())


def is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)


def gather_weights(model: nn.Module, wanted: Callable[[str], bool], *, keep: bool) -> dict[str, torch.Tensor]:
    """The whole weights of `wanted` names, on the CPU where the model is sharded; every process has to ask for them,
    and those that don't `keep` them get nothing."""
    weights = {}
    for name, tensor in model.state_dict().items():
        if wanted(name):
            whole = tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor
            if keep:
                weights[name] = whole
    return weights


def gather_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The whole state of a sharded model's optimizer, for the first process; every process has to ask for it."""
    return get_optimizer_state_dict(model, optimizer, options=_WHOLE)


def scatter_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Put back what `gather_optimizer` gave; weights that no loss depends on have no state."""
    set_optimizer_state_dict(model, optimizer, state, options=StateDictOptions(full_state_dict=True, strict=False))
