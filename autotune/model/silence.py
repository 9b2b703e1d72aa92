"""Messages of torch's exporters that no user of autotune can act on: silenced."""

import contextlib
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def silenced(*loggers: str, level: int = logging.CRITICAL) -> Iterator[None]:
    """Silence warnings, and some loggers below a level, and restore them afterwards."""
    before = {name: logging.getLogger(name).level for name in loggers}
    for name in loggers:
        logging.getLogger(name).setLevel(level)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, own in before.items():
            logging.getLogger(name).setLevel(own)
