"""Training: a typed recipe, transformers' Trainer underneath, routing in the logs, checkpoints that survive a kill."""

from .checkpoint import checkpoints
from .metrics import validation_sources
from .recipe import Optimization, Recipe, TokenizerSpec, load_recipe
from .run import RECIPE_FILE, Prepared, TrainResult, prepare, train
from .tables import data_table

__all__ = [
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
    "train",
    "validation_sources",
]
