"""Loading a model over several devices: the options that Transformers takes, and what is refused before it is asked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PretrainedConfig
from transformers.distributed import DistributedConfig

from chainwright._errors import BadInput
from chainwright.models.sharding import check_heads

MERGE_FIRST = "merge it first (load_model on one device, then save_pretrained) and load the result."


def check_spread(tp_plan: str | None, device_map: Any, device: object, adapter: object) -> None:
    """Raise BadInput for ways to place a model that contradict each other."""
    if tp_plan is None and device_map is None:
        return
    if tp_plan not in (None, "auto"):
        raise BadInput(f"tp_plan must be 'auto' (the plan of the model's family) or None; got {tp_plan!r}.")
    if tp_plan is not None and device_map is not None:
        raise BadInput("tp_plan spreads a model over processes, device_map over the devices of one; pass only one.")
    if device is not None and (device_map is not None or torch.device(str(device)).type != accelerator()):
        which = "device_map" if tp_plan is None else f"tp_plan, which takes the {accelerator()} devices of this machine"
        raise BadInput(f"device={str(device)!r} and {which} both say where the model goes; pass only one of them.")
    if adapter is not None:
        raise BadInput(f"An adapter is merged on one device, and this model is spread over several; {MERGE_FIRST}")


def accelerator() -> str:
    """Return the kind of device that ranks run on: "cpu" where there is no other."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return "cpu" if found is None or found.type == "mps" else found.type


def spread_options(
    config: PretrainedConfig, tp_plan: str | None, device_map: str | Mapping[str, str | int] | None
) -> dict[str, Any]:
    """Return what `from_pretrained` takes; empty for a model on one device.

    Raises:
        BadInput: There is no group of ranks, or the model cannot be spread over it.
    """
    if tp_plan is not None:
        return _tensor_parallel(config)
    return {} if device_map is None else {"device_map": device_map if isinstance(device_map, str) else dict(device_map)}


def _tensor_parallel(config: PretrainedConfig) -> dict[str, Any]:
    n_ranks = int(os.environ.get("WORLD_SIZE", 0))
    if n_ranks < 2 or "RANK" not in os.environ:
        raise BadInput(
            "tp_plan spreads a model over the processes of a group, and this process is in none; start the program "
            "with torchrun --nproc-per-node N, or a command with --tp N."
        )
    kind, n_devices = accelerator(), torch.accelerator.device_count()
    if kind != "cpu" and int(os.environ.get("LOCAL_WORLD_SIZE", n_ranks)) > n_devices:
        raise BadInput(
            f"{n_ranks} ranks need a {kind} device each, and this machine has {n_devices}; use at most {n_devices}."
        )
    plan = getattr(config.get_text_config(), "base_model_tp_plan", None)
    if not plan:
        raise BadInput(
            f"Transformers has no plan for spreading {config.model_type} models over ranks; load it with "
            "device_map='auto' (--device-map auto) or in one process."
        )
    check_heads(config, plan, n_ranks)
    return {"distributed_config": DistributedConfig(tp_plan="auto")}
