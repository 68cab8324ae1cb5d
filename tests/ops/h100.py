"""``python -m tests.ops.h100 [--all]``: compiles every Triton kernel for an H100, on a machine without one.

Prints a line for each: name, dtype, block sizes, shared memory in KiB. Everything up to the launch is what runs on a
GPU, arguments and their specialisation included; nothing is launched, so the numbers that come out mean nothing.
"""

import sys

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.autotuner import Autotuner
from triton.runtime.jit import JITFunction, KernelInterface

from moepp.ops import routing, triton_experts

T, D, F, N, K, C = 4096, 512, 1024, 16, 2, 2
TYPICAL = {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64}


class H100:
    """As much of a driver as compiling asks for."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


def compile_instead_of_launching(every_config: bool) -> None:
    """From here on ``kernel[grid](…)`` compiles ``kernel`` for these arguments and reports."""
    driver.set_active(H100())

    def compiled(kernel: KernelInterface, *args: object, **kwargs: object) -> None:
        if isinstance(kernel, Autotuner):
            kernel.nargs = dict(zip(kernel.arg_names, args, strict=False))
            configs = kernel.prune_configs(kwargs)
            if not every_config and len(configs) > 1:
                configs = [c for c in configs if c.kwargs == TYPICAL][-1:]
            for config in configs:
                compiled(kernel.fn, *args, **kwargs, **config.all_kwargs())
            return
        assert isinstance(kernel, JITFunction)
        binary = kernel.warmup(*args, grid=(1,), **kwargs)
        blocks = "x".join(str(kwargs[name]) for name in TYPICAL if name in kwargs)
        dtype = next(t.dtype for t in args if (isinstance(t, torch.Tensor) and t.is_floating_point()) or t is args[-1])
        print(kernel.__name__, dtype, blocks or "-", binary.metadata.shared // 1024, flush=True)

    KernelInterface.__getitem__ = lambda self, grid: lambda *args, **kwargs: compiled(self, *args, **kwargs)


def main(every_config: bool) -> None:
    compile_instead_of_launching(every_config)
    for dtype in (torch.bfloat16, torch.float32):
        x, gate_up, down = torch.zeros(T, D, dtype=dtype), torch.zeros(N, 2 * F, D), torch.zeros(N, D, F)
        weight, scale, shift = torch.zeros(T, K), torch.zeros(T), torch.zeros(T, C)
        experts = x, weight, gate_up.to(dtype), down.to(dtype), scale, shift, torch.zeros(C, D, dtype=dtype)
        tables = triton_experts.dispatch(torch.zeros(T, K, dtype=torch.long), N)
        _, halves = triton_experts._forward(*experts, *tables, True)
        triton_experts._backward(x, *experts, *tables, halves, [True] * 7)
    logits = torch.zeros(T, 20)
    for combine in ("renormalize_nonzero", "softmax_topk"):
        chosen = routing._route(logits, logits[0], K, combine, 18, 20, 1.0)
        routing._route_backward(logits, weight, logits, *chosen, combine, 18, 20, 1.0)


if __name__ == "__main__":
    main("--all" in sys.argv)
