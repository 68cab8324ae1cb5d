"""Imported once by the server that the benchmark's processes are forked from."""

import logging

# As in moepp.cli: what these cannot load is not this benchmark's concern.
for _library in ("torchao", "bitsandbytes", "torch.utils._pytree"):
    logging.getLogger(_library).setLevel(logging.ERROR)

from . import comm as comm  # noqa: E402
