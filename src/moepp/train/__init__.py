"""Training: a typed recipe, transformers' Trainer underneath, routing in the logs, checkpoints that survive a kill."""

from .callbacks import METRICS_FILE, read_metrics
from .checkpoint import checkpoints
from .metrics import validation_sources
from .prepared import Prepared, prepare
from .recipe import Optimization, Recipe, TokenizerSpec, load_recipe
from .run import RECIPE_FILE, TrainResult, train
from .tables import data_table

__all__ = [
    "METRICS_FILE",
    "RECIPE_FILE",
    "Optimization",
    "Prepared",
    "Recipe",
    "TokenizerSpec",
    "TrainResult",
    "checkpoints",
    "data_table",
    "load_recipe",
    "prepare",
    "read_metrics",
    "train",
    "validation_sources",
]
