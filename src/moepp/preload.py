"""The first import of a server that processes are forked from: it says nothing of what does not concern them."""

import logging

# As in moepp.cli: transformers imports these wherever they are installed, and they tell of what they cannot load.
for _library in ("torchao", "bitsandbytes", "torch.utils._pytree"):
    logging.getLogger(_library).setLevel(logging.ERROR)
