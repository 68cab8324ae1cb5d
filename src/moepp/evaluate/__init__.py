"""Measuring a trained model: on tasks, by lm-evaluation-harness, and on text.

Importing this does not load the harness.
"""

from .harness import SEEDS, evaluate_tasks
from .perplexity import TextLoss, text_loss, token_losses
from .scores import Evaluation, Score, Skipped
from .stdlib_tasks import VALIDATION_FRACTION, items_hash

__all__ = [
    "SEEDS",
    "VALIDATION_FRACTION",
    "Evaluation",
    "Score",
    "Skipped",
    "TextLoss",
    "evaluate_tasks",
    "items_hash",
    "text_loss",
    "token_losses",
]
