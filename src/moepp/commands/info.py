"""``moepp info``."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..config import EXPERT_TYPES
from ..errors import ConfigError
from ..fields import check_section
from ..format import binary, large
from ..model import Accounting, MoEPPConfig, account, load_config, preset
from ..train.recipe import parse_override


def run_info(name: str, overrides: Sequence[str], *, context: int | None, bytes_per_weight: int) -> None:
    """Prints one model's accounting as a table."""
    for option, value in (("--context", context), ("--bytes-per-weight", bytes_per_weight)):
        if value is not None and value < 1:
            raise ConfigError(f"{option}={value} must be at least 1")
    config = _configuration(name, overrides)
    counts = account(config, context=context, bytes_per_weight=bytes_per_weight)
    length = context or config.max_position_embeddings
    table = Table(title=name, title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    for row in _rows(config, counts, length, bytes_per_weight):
        table.add_row(*row)
    Console().print(table)


def _configuration(name: str, overrides: Sequence[str]) -> MoEPPConfig:
    changes = (parse_override(item, "tau=0.5") for item in overrides)
    fields = {key.removeprefix("model."): value for key, value in changes}
    check_section("model", fields, MoEPPConfig.__annotations__)
    if not Path(name).is_dir():
        return preset(name, **fields)
    return MoEPPConfig.from_dict(load_config(name).to_dict() | fields)


def _rows(config: MoEPPConfig, counts: Accounting, length: int, bytes_per_weight: int) -> list[tuple[str, str, str]]:
    layout = config.moe.layout()
    experts = ", ".join(f"{layout.count(kind)} {kind}" for kind in EXPERT_TYPES if layout.count(kind))
    at_most = f"{config.top_k} experts a layer"
    if shared := config.num_shared_experts:
        experts, at_most = f"{experts}, and {shared} shared", f"{at_most}, and {shared} shared"
    vanilla = counts.expert_flops_per_token / counts.vanilla_expert_flops_per_token
    shape = f"{config.num_hidden_layers} × {config.hidden_size}"
    expected = f"at the balance of tau={config.tau:g}"
    kv_cache = f"{binary(counts.kv_bytes_per_token * length)} at {length} tokens"
    return [
        ("layers × hidden", shape, f"experts {config.intermediate_size} wide"),
        ("experts per layer", str(layout.num_experts), experts),
        ("parameters", large(counts.total_parameters), f"{counts.total_parameters:,}"),
        ("  embeddings", large(counts.embedding_parameters), "tied" if config.tie_word_embeddings else "in and out"),
        ("  attention", large(counts.attention_parameters), ""),
        ("  FFN experts", large(counts.ffn_expert_parameters), ""),
        *([("  shared experts", large(counts.shared_expert_parameters), "of every token")] if shared else []),
        ("  zero-computation experts", large(counts.zero_computation_parameters), "v and W_c of the constants"),
        ("  routers", large(counts.router_parameters), "with gating residuals" if config.gating_residual else ""),
        ("  norms", large(counts.norm_parameters), ""),
        ("activated per token, at most", large(counts.activated_parameters), at_most),
        ("activated per token, expected", large(counts.expected_activated_parameters), expected),
        ("FLOPs per token, forward", large(counts.forward_flops_per_token), f"over {length} tokens of context"),
        ("FLOPs per token, training", large(counts.training_flops_per_token), "three forward passes"),
        ("expert FLOPs over vanilla's", f"{vanilla:.1%}", "Table 1"),
        ("bound on the speed-up", f"{counts.speedup_bound:.2f}×", "of the experts, over vanilla's"),
        ("weights", binary(counts.weight_bytes), f"{bytes_per_weight} bytes each"),
        ("KV cache per token", binary(counts.kv_bytes_per_token), kv_cache),
    ]
