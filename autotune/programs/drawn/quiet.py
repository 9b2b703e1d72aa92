"""Silence for the warnings and logs of torch about each of many small graphs."""

import contextlib
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings and logs for a while."""
    with warnings.catch_warnings():
        _silence()
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def start_worker() -> None:
    """Prepare a process that runs beside others: one thread, and silence."""
    import torch

    torch.set_num_threads(1)
    _silence()


def _silence() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)  # torch.export logs the whole graph of a model that it refuses
