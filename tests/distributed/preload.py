"""Imported once by the server that the tests' processes are forked from: what every one of them needs."""

import torch

torch.set_num_threads(1)
