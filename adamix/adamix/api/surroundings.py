"""What a training changes of its process and a notebook wants back: generators of random numbers, and what is logged.

Knows transformers by what its trainer sets: all seeds, and its own log level.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def left_as_found() -> Iterator[None]:
    """The generators of `random`, numpy and torch and the log level of transformers are afterwards as before.

    Without that a program that draws its settings would draw the same ones after every training.
    """
    import numpy as np
    import torch
    from transformers.utils import logging

    level, drawn, numbers = logging.get_verbosity(), random.getstate(), np.random.get_state()
    has_cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = range(torch.cuda.device_count()) if has_cuda else ()
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        random.setstate(drawn)
        np.random.set_state(numbers)
        logging.set_verbosity(level)
