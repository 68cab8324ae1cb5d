"""How many processes there are of each kind, what one step feeds them, and the machines that they run on."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How many processes, one per GPU, share what; ranks are numbered replica by replica."""

    fsdp: int = 1
    """Share one copy of the model, every parameter cut into so many parts."""
    ep: int = 1
    """Of those, share the FFN experts out among them, whole ones, and exchange tokens."""
    replicate: int = 1
    """Copies of all that."""

    @property
    def gpus(self) -> int:
        """All processes; each works on micro-batches of its own."""
        return self.fsdp * self.replicate

    @property
    def expert_fsdp(self) -> int:
        """Processes that own the same FFN experts, and cut their parameters into parts."""
        return self.fsdp // self.ep


def all_sizes(gpus: int, num_ffn_experts: int) -> list[Sizes]:
    """All that so many GPUs allow."""
    return [
        Sizes(fsdp=fsdp, ep=ep, replicate=gpus // fsdp)
        for fsdp in _divisors(gpus)
        for ep in _divisors(fsdp)
        if num_ffn_experts % ep == 0
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """One optimizer step."""

    sequences: int
    """Of one micro-batch."""
    sequence_length: int
    micro_batches: int
    """Of the step, over all processes, each of which takes as many."""
    bf16: bool
    """Products in bfloat16 by autocast; parameters, gradients and what travels for FSDP are float32 either way."""
    checkpointing: bool
    """Layers keep their inputs alone, and run again in the backward pass."""

    @property
    def tokens(self) -> int:
        """Of one micro-batch."""
        return self.sequences * self.sequence_length


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """Machines alike; bandwidths are one GPU's, one way, in bytes per second."""

    gpu_memory: float
    """Bytes."""
    gpus_per_node: int
    peak: float
    """FLOPs per second of one GPU in the dtype of its products."""
    utilisation: float
    """The share of the peak that computing reaches."""
    node_bandwidth: float
    """Between the GPUs of one node."""
    bandwidth: float
    """Between nodes."""


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
