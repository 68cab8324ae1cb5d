"""Measuring speed: variants interleaved in one process, medians with their spread."""

from .comm import CommCase, measure_comm
from .comm_network import Link
from .comm_page import FOLDER, cells, comm_page, read_comm
from .comm_rows import CommResults, CommRow
from .layers import PASSES, layer_group
from .learned import Learned
from .loader import measure_loader
from .measure import Case, Group, measure_group
from .method import Timing, interleave, machine
from .model import MODELS, Job, Route, Task, run_models
from .paper import table_a, table_b
from .peers import PEERS
from .plan import Layers, Step, run_step
from .report import machines, read_results, report
from .router import measure_router
from .rows import Results, Row, command, facts
from .sizes import SIZES, layer_config, model_config
from .throughput import Throughput, expert_throughput
from .work import LayerWork, capture_work, run_experts, spread_work, synthetic_work, twin_layers

__all__ = [
    "FOLDER",
    "MODELS",
    "PASSES",
    "PEERS",
    "SIZES",
    "Case",
    "CommCase",
    "CommResults",
    "CommRow",
    "Group",
    "Job",
    "LayerWork",
    "Layers",
    "Learned",
    "Link",
    "Results",
    "Route",
    "Row",
    "Step",
    "Task",
    "Throughput",
    "Timing",
    "capture_work",
    "cells",
    "comm_page",
    "command",
    "expert_throughput",
    "facts",
    "interleave",
    "layer_config",
    "layer_group",
    "machine",
    "machines",
    "measure_comm",
    "measure_group",
    "measure_loader",
    "measure_router",
    "model_config",
    "read_comm",
    "read_results",
    "report",
    "run_experts",
    "run_models",
    "run_step",
    "spread_work",
    "synthetic_work",
    "table_a",
    "table_b",
    "twin_layers",
]
