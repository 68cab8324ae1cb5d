"""Text for training: sources, tokenizers, and samples of equal length.

Importing this loads torch and numpy; ``transformers``, ``tokenizers`` and ``datasets`` are loaded by what needs them.
"""

from .build import Data, build_data
from .packing import Progress, TrainingData, ValidationData
from .sources import Corpus, Source, load_corpus, sample_documents
from .spec import DataSpec, SourceSpec
from .streaming import StreamingData
from .tokenizer import check_vocabulary, load_tokenizer, tokenizer_hash, train_tokenizer

__all__ = [
    "Corpus",
    "Data",
    "DataSpec",
    "Progress",
    "Source",
    "SourceSpec",
    "StreamingData",
    "TrainingData",
    "ValidationData",
    "build_data",
    "check_vocabulary",
    "load_corpus",
    "load_tokenizer",
    "sample_documents",
    "tokenizer_hash",
    "train_tokenizer",
]
