"""What a command shows of other libraries' logging."""

import logging


def quiet_libraries() -> None:
    """Hides what these say while transformers imports them, as it does wherever they are installed.

    What they cannot load concerns only those who use them.
    """
    for library in ("torchao", "bitsandbytes", "torch.utils._pytree"):
        logging.getLogger(library).setLevel(logging.ERROR)
