"""How many processes a run has, and what each of them is for.

dp = replicate_size · fsdp_size processes each work on batches of their own. FSDP2 shards every parameter over
``fsdp_size`` of them and keeps ``replicate_size`` copies; expert parallelism takes ``ep_size`` of the FSDP processes
together, each of which owns a share of the FFN experts whole and receives the tokens that chose them. Experts are then
sharded over the ``fsdp_size / ep_size`` processes that own the same ones. Routers and zero-computation experts are
everywhere.
"""

from dataclasses import dataclass

from ..errors import ConfigError


@dataclass
class DistributedSpec:
    """What a recipe says about processes; the launcher, torchrun, decides how many there are."""

    fsdp_size: int | None = None
    """Processes that share one copy of the weights; None is all of them."""
    ep_size: int = 1
    """Of those, processes that share one copy of the FFN experts by exchanging tokens."""
    replicate_size: int = 1
    """Copies of the weights; with fsdp_size=1 this is plain data parallelism."""
    timeout_seconds: float = 600.0
    """After so long without progress a process counts as hung, and the run ends."""

    def __post_init__(self) -> None:
        for name in ("fsdp_size", "ep_size", "replicate_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"distributed.{name}={value} must be at least 1")
        if not self.timeout_seconds > 0:
            raise ConfigError(f"distributed.timeout_seconds={self.timeout_seconds} must be a number > 0")


@dataclass(frozen=True)
class Layout:
    """The processes of a running job, and which of them this is."""

    replicate_size: int = 1
    fsdp_size: int = 1
    ep_size: int = 1
    rank: int = 0

    @property
    def world_size(self) -> int:
        """All processes; each is data parallel, working on batches of its own."""
        return self.replicate_size * self.fsdp_size

    @property
    def first(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank == 0


def resolve(spec: DistributedSpec, *, world_size: int, rank: int, num_ffn_experts: int) -> Layout:
    """What a recipe's sizes mean for the processes that there are.

    Raises:
        ConfigError: they don't fit them, each other or the model's experts.
    """
    fsdp = spec.fsdp_size
    if fsdp is None:
        if world_size % spec.replicate_size:
            raise ConfigError(
                f"distributed.replicate_size={spec.replicate_size} does not divide the {world_size} processes; "
                "choose a divisor, or start another number of them"
            )
        fsdp = world_size // spec.replicate_size
    if fsdp * spec.replicate_size != world_size:
        needed = fsdp * spec.replicate_size
        raise ConfigError(
            f"distributed.fsdp_size={fsdp} x distributed.replicate_size={spec.replicate_size} needs {needed} processes "
            f"and there {'is' if world_size == 1 else 'are'} {world_size}; change the sizes, or start so many: "
            f"torchrun --nproc-per-node {needed} -m moepp train …"
        )
    if fsdp % spec.ep_size:
        raise ConfigError(
            f"distributed.ep_size={spec.ep_size} does not divide distributed.fsdp_size={fsdp}: "
            "expert parallelism takes FSDP processes together; choose a divisor"
        )
    if num_ffn_experts % spec.ep_size:
        raise ConfigError(
            f"distributed.ep_size={spec.ep_size} does not divide model.num_ffn_experts={num_ffn_experts}; "
            "choose a divisor, so that every process owns as many"
        )
    return Layout(spec.replicate_size, fsdp, spec.ep_size, rank)
