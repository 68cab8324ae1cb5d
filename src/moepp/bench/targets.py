"""What was set out to be reached, and whether it was: goals over benchmark rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .rows import Row

GROUPED_MM = "transformers:grouped_mm"


@dataclass(frozen=True)
class Tokens:
    """Which T a target is about."""

    text: str
    about: Callable[[int], bool]


FEW = Tokens("T = 256", lambda tokens: tokens == 256)
MANY = Tokens("T = 2048, 8192", lambda tokens: tokens in (2048, 8192))
ANY = Tokens("", lambda tokens: True)
GPU = Tokens("T ≥ 8192", lambda tokens: tokens >= 8192)
ONE = Tokens("T = 1", lambda tokens: tokens == 1)


@dataclass(frozen=True, kw_only=True)
class Target:
    """A goal for every row that it is about; None means any."""

    text: str
    benchmark: str
    variant: str
    value: Callable[[Row], float | None]
    wanted: float
    at_most: bool = False
    dtype: str | None = None
    size: str | None = None
    tokens: Tokens
    tau: Callable[[float], bool] | None = None
    routing: str | None = "synthetic"
    pass_: str | None = None

    def values(self, rows: Sequence[Row]) -> list[tuple[float, Row]]:
        """What was measured, the worst first; of a variant on several backends the best counts."""
        best: dict[tuple[object, ...], tuple[float, Row]] = {}
        for row in rows:
            if not self._about(row) or (value := self.value(row)) is None:
                continue
            key = (row.size, row.dtype, row.tokens, row.tau, row.pass_, row.batch, row.routing)
            if key not in best or (value < best[key][0]) == self.at_most:
                best[key] = (value, row)
        return sorted(best.values(), key=lambda pair: pair[0], reverse=self.at_most)

    def met(self, value: float) -> bool:
        return value <= self.wanted if self.at_most else value >= self.wanted

    def _about(self, row: Row) -> bool:
        return (
            row.benchmark == self.benchmark
            and row.variant in (self.variant, self.variant.replace(":auto", ":triton"))
            and self.routing in (None, row.routing)
            and self.pass_ in (None, row.pass_)
            and self.dtype in (None, row.dtype)
            and self.size in (None, row.size)
            and self.tokens.about(row.tokens)
            and (self.tau is None or (row.tau is not None and self.tau(row.tau)))
        )


def _peak(row: Row) -> float | None:
    return row.fraction_of_peak


def _bound(row: Row) -> float | None:
    return row.fraction_of_bound


def _share(row: Row) -> float | None:
    return row.share_of_layer


def _over_grouped_mm(row: Row) -> float | None:
    return row.speedup_over.get(GROUPED_MM)


def _over_vanilla(row: Row) -> float | None:
    return row.speedup_over.get("vanilla:auto")


def _over_best_peer(row: Row) -> float | None:
    return min((ratio for name, ratio in row.speedup_over.items() if not name.startswith("vanilla:")), default=None)


def _peaks() -> list[Target]:
    found = []
    for dtype, few in (("float32", 0.75), ("bfloat16", 0.70)):
        for tokens, wanted in ((FEW, few), (MANY, 0.88)):
            found.append(
                Target(
                    text=f"forward, 0.6b, {dtype}: fraction of the dense peak",
                    benchmark="experts",
                    variant="vanilla:auto",
                    value=_peak,
                    wanted=wanted,
                    dtype=dtype,
                    size="0.6b",
                    tokens=tokens,
                )
            )
    return found


def _ratios() -> list[Target]:
    found = []
    for what, benchmark, variant, size, dtype, tokens, wanted in (
        ("forward", "experts", "vanilla:auto", "0.6b", "float32", FEW, 1.3),
        ("forward", "experts", "vanilla:auto", "0.6b", "float32", MANY, 1.3),
        ("forward", "experts", "vanilla:auto", "0.6b", "bfloat16", FEW, 1.15),
        ("forward", "experts", "vanilla:auto", "0.6b", "bfloat16", MANY, 1.2),
        ("forward", "experts", "vanilla:auto", "7b", "float32", FEW, 1.8),
        ("forward", "experts", "vanilla:auto", "7b", "float32", MANY, 1.2),
        ("forward and backward", "train", "ffn:auto", "0.6b", "float32", FEW, 1.4),
        ("forward and backward", "train", "ffn:auto", "0.6b", "float32", MANY, 1.25),
        ("decode", "decode", "ffn:auto", "0.6b", "bfloat16", ONE, 1.5),
        ("decode", "decode", "ffn:auto", "7b", "bfloat16", ONE, 1.3),
    ):
        found.append(
            Target(
                text=f"{what}, {size}, {dtype}: over grouped_mm",
                benchmark=benchmark,
                variant=variant,
                value=_over_grouped_mm,
                wanted=wanted,
                dtype=dtype,
                size=size,
                tokens=tokens,
            )
        )
    return found


def _bounds(
    tokens: Tokens, wanted: dict[str, tuple[Callable[[float], bool], float]], dtype: str | None = None
) -> list[Target]:
    return [
        Target(
            text=f"MoE++ over its vanilla twin, tau {taus}: fraction of the bound",
            benchmark="layer",
            variant="moepp:auto",
            value=_bound,
            wanted=value,
            tokens=tokens,
            dtype=dtype,
            tau=about,
        )
        for taus, (about, value) in wanted.items()
    ]


def _router_share(tokens: Tokens, wanted: float) -> Target:
    return Target(
        text="router and zero-computation experts' share of the layer, tau 0.75",
        benchmark="router",
        variant="moepp:router+zero:auto",
        value=_share,
        wanted=wanted,
        at_most=True,
        tokens=tokens,
        tau=lambda tau: tau == 0.75,
    )


def _whole_models() -> list[Target]:
    return [
        Target(
            text=f"{pass_} with the whole model, 0.6b: {text}",
            benchmark="model",
            variant=variant,
            value=value,
            wanted=wanted,
            size="0.6b",
            tokens=ANY,
            routing=None,
            pass_=pass_,
        )
        for pass_ in ("training", "generation")
        for text, variant, value, wanted in (
            ("MoE++ over its vanilla twin", "moepp:auto", _over_vanilla, 1.15),
            ("vanilla over Mixtral", "vanilla:auto", _over_grouped_mm, 1.0),
        )
    ]


def _from_half(tau: float) -> bool:
    return tau >= 0.5


CPU_TARGETS: Sequence[Target] = (
    *_peaks(),
    *_ratios(),
    *_bounds(FEW, {"≥ 0.5": (_from_half, 0.75)}),
    *_bounds(
        MANY,
        {
            "≥ 0.5": (_from_half, 0.95),
            "0.25": (lambda tau: tau == 0.25, 0.92),
            "0.1": (lambda tau: tau == 0.1, 0.80),
        },
    ),
    _router_share(MANY, 0.04),
    *_whole_models(),
)
"""On two cores."""

GPU_TARGETS: Sequence[Target] = (
    *_bounds(
        GPU,
        {
            "≥ 0.5": (_from_half, 0.95),
            "0.25": (lambda tau: tau == 0.25, 0.90),
            "0.1": (lambda tau: tau == 0.1, 0.80),
        },
        "bfloat16",
    ),
    Target(
        text="vanilla forward, 7b: fraction of the dense peak",
        benchmark="experts",
        variant="vanilla:auto",
        value=_peak,
        wanted=0.80,
        dtype="bfloat16",
        size="7b",
        tokens=GPU,
    ),
    *(
        Target(
            text=f"{text}: over {peer}",
            benchmark=benchmark,
            variant=variant,
            value=value,
            wanted=wanted,
            dtype="bfloat16",
            tokens=GPU,
        )
        for text, benchmark, variant in (
            ("vanilla forward", "experts", "vanilla:auto"),
            ("forward and backward", "train", "ffn:auto"),
        )
        for peer, value, wanted in (
            ("grouped_mm", _over_grouped_mm, 1.2),
            ("the best importable peer", _over_best_peer, 1.0),
        )
    ),
    _router_share(GPU, 0.05),
)
"""On an H100 or its like, bfloat16, T ≥ 8192."""
