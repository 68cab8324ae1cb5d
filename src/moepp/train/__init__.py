"""Training: a typed recipe, transformers' Trainer underneath, routing in the logs, checkpoints that survive a kill."""

from .recipe import Optimization, Recipe, TokenizerSpec, load_recipe
from .run import TrainResult, train

__all__ = ["Optimization", "Recipe", "TokenizerSpec", "TrainResult", "load_recipe", "train"]
