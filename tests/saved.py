"""A saved model with its tokenizer, as commands find one: tiny, random, and never at the end of a text."""

from pathlib import Path

from moepp.data import train_tokenizer

from .model.factory import tiny_model

WORDS = 290


def save_tiny(folder: Path, **changes: object) -> Path:
    """Writes both; ``changes`` are of the model's configuration."""
    tokenizer = train_tokenizer(["def main(args):\n    return 0\n"] * 20, WORDS)
    tokenizer.save_pretrained(folder)
    fields = {"vocab_size": WORDS, "num_hidden_layers": 2, "max_position_embeddings": 1024}
    tiny_model(**(fields | changes)).save_pretrained(folder)
    return folder
