"""Measuring speed: variants interleaved in one process, medians with their spread."""

from .experts import LayerWork, capture_work, run_experts, synthetic_work
from .method import Timing, interleave, machine

__all__ = ["LayerWork", "Timing", "capture_work", "interleave", "machine", "run_experts", "synthetic_work"]
