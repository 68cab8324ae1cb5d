"""Text for training: sources, tokenizers, and samples of equal length.

Importing this loads torch and numpy; ``transformers``, ``tokenizers`` and ``datasets`` are loaded by what needs them.
"""

from .build import Data, build_data
from .files import read_files
from .hashing import digest, unit_hash
from .loader import train_loader
from .packing import Progress, TrainingData, ValidationData, encode
from .python_library import Function, load_held_out_functions, load_python_library
from .sources import Corpus, Source, load_corpus, sample_documents, utf8_length
from .spec import DataSpec, SourceSpec
from .streaming import StreamingData, merge_states
from .tokenizer import check_vocabulary, load_tokenizer, tokenizer_hash, train_tokenizer

__all__ = [
    "Corpus",
    "Data",
    "DataSpec",
    "Function",
    "Progress",
    "Source",
    "SourceSpec",
    "StreamingData",
    "TrainingData",
    "ValidationData",
    "build_data",
    "check_vocabulary",
    "digest",
    "encode",
    "load_corpus",
    "load_held_out_functions",
    "load_python_library",
    "load_tokenizer",
    "merge_states",
    "read_files",
    "sample_documents",
    "tokenizer_hash",
    "train_loader",
    "train_tokenizer",
    "unit_hash",
    "utf8_length",
]
