"""What transformers says while it loads or writes a model, kept off the terminal. Knows no model."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Without transformers' progress bars, and without its loading report: a body has no head to warn about."""
    from transformers.utils import logging as transformers_logging

    logger = logging.getLogger("transformers")
    level, has_bar = logger.level, transformers_logging.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        if has_bar:
            transformers_logging.enable_progress_bar()
