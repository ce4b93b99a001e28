"""Switches of speed and precision: which go together, which are the fastest, what they change in the model."""

import copy
import resource
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import nn
from torch._functorch import config as functorch

from mmpareto.config import DataConfig, EngineConfig
from mmpareto.datasets import Modality
from mmpareto.errors import UsageError
from mmpareto.escape import counted
from mmpareto.inputs import VARIABLE
from mmpareto.methods import Method
from mmpareto.models import MultimodalModel, Output


def autocast_type(engine: EngineConfig) -> torch.dtype | None:
    """The type of automatic mixed precision; None: none."""
    return {None: None, "bf16": torch.bfloat16, "fp16": torch.float16}[engine.amp]


def refusals(method: Method) -> dict[str, str]:
    """Switches with which the method cannot work, with the reason."""
    capture = {} if method.integrator.capturable else {"cuda_graph": "its weights are computed on the host"}
    return capture | dict(method.refuses)


def check_shapes(engine: EngineConfig, modalities: Mapping[str, Modality]) -> None:
    """Raise UsageError for switches that need inputs of one shape, where lengths vary."""
    variable = [name for name, modality in modalities.items() if modality.kind in VARIABLE]
    if engine.cuda_graph and variable:
        raise UsageError(
            f"--cuda_graph replays steps of one shape, and samples of {variable[0]} differ in length; leave it out"
        )


def check_switches(data: DataConfig, engine: EngineConfig, device: torch.device, processes: int) -> None:
    """Raise UsageError for switches that cannot work here or together, with the reason."""
    cuda = device.type == "cuda"
    open_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    needed_files = 40 + 12 * (data.num_workers or 0)  # three loaders, whose workers have pipes and semaphores each
    checks = [
        (
            0 <= open_files < needed_files,
            f"--num_workers {data.num_workers} needs {needed_files} open files or so, the limit is {open_files}: "
            "raise it (ulimit -n 4096), or give fewer --num_workers (0 needs none)",
        ),
        (engine.tf32 and not cuda, f"--tf32 is a mode of NVIDIA GPUs; this run is on {device.type}"),
        (engine.cuda_graph and not cuda, f"--cuda_graph needs an NVIDIA GPU; this run is on {device.type}"),
        (engine.sync_batchnorm and not cuda, "--sync_batchnorm: PyTorch synchronises batch norm on GPUs only"),
        (engine.amp == "fp16" and device.type == "mps", "--amp fp16 is not supported on mps; leave it out"),
        (
            engine.sync_batchnorm and processes == 1,
            "--sync_batchnorm means nothing to one process; script/distributed.sh starts several",
        ),
        (
            engine.cuda_graph and engine.amp == "fp16",
            "--cuda_graph with --amp fp16: the gradient scaler decides on the host whether to step; take --amp bf16",
        ),
        (engine.cuda_graph and engine.accumulate > 1, "--cuda_graph captures whole steps: leave --accumulate out"),
        (
            engine.cuda_graph and processes > 1,
            "--cuda_graph with several processes: their all-reduce is not captured; leave one of the two out",
        ),
        (
            cuda and engine.amp == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False),
            "--amp bf16: this GPU has no bfloat16; take --amp fp16",
        ),
        (
            data.batch_size < processes * engine.accumulate,
            f"--batch_size {data.batch_size} is less than {counted(processes, 'process')} x {engine.accumulate} "
            "micro-batches; every one needs a sample",
        ),
    ]
    for refused, reason in checks:
        if refused:
            raise UsageError(reason)


def fastest(device: torch.device, processes: int, method: Method, engine: EngineConfig) -> dict[str, Any]:
    """What --fast switches on for this device: only what agrees with the plain path to the type's precision.

    Nothing that the method refuses, or that does not go with the switches of `engine`.
    """
    refused = refusals(method)
    if device.type == "cuda":
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        chosen: dict[str, Any] = {"amp": "bf16" if bf16 else "fp16", "channels_last": True, "tf32": True}
        if processes == engine.accumulate == 1 and (engine.amp or chosen["amp"]) == "bf16":
            chosen["cuda_graph"] = True
    elif device.type == "mps":
        chosen = {}
    else:
        # without such instructions bfloat16 is emulated, and slower than float32
        fast_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        chosen = {"channels_last": True} | ({"amp": "bf16"} if fast_bf16 else {})
    return {key: value for key, value in chosen.items() if key not in refused and f"{key} {value}" not in refused}


def apply_switches(model: MultimodalModel, engine: EngineConfig, device: torch.device) -> MultimodalModel:
    """Precision of the device, memory format and batch norm of the model; gives the model to train."""
    if device.type == "cuda":
        # PyTorch's own default lets convolutions use TF32: here only when asked to
        torch.backends.cudnn.allow_tf32 = engine.tf32
        torch.set_float32_matmul_precision("high" if engine.tf32 else "highest")
        torch.backends.cudnn.benchmark = True  # input shapes do not change: let cuDNN find its fastest kernels once
    if engine.sync_batchnorm:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model = model.to(device)
    if engine.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def compiled(model: MultimodalModel, kinds: Mapping[str, str]) -> Callable[..., Output]:
    """Compile the forward pass for training; the model itself stays as it is.

    In late fusion each encoder is compiled for itself. A compiled function has one backward pass for all that it did:
    with the whole model in one, encoders could not be integrated one after the other, and a pass through the heads
    would go through the encoders as well. Other models are compiled whole.

    Args:
        kinds: {modality: kind of its input}.
    """
    # the retained graph of the first of two passes must not give its buffers away
    functorch.donated_buffer = False
    # kernels of one shape are faster; PyTorch takes two encoders of one class for one function with varying shapes,
    # and stops compiling a function after as many shapes
    torch._dynamo.config.recompile_limit = 64
    dynamic = {name: None if kind in VARIABLE else False for name, kind in kinds.items()}
    if not model.late:
        return torch.compile(model, dynamic=None if None in dynamic.values() else False)
    twin = copy.copy(model)  # the same parameters
    twin._modules = dict(model._modules)
    twin.encoders = nn.ModuleDict(
        {
            name: cast(nn.Module, torch.compile(encoder, dynamic=dynamic[name]))
            for name, encoder in model.encoders.items()
        }
    )
    twin.training = True
    return twin
