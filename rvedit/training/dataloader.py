"""The dataloader of training, whose worker processes end with the training process, however that ends."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Generator, Iterable
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Dataset

from rvedit.io.errors import UserError
from rvedit.io.signals import stop_signals

Item = TypeVar("Item")


def build_dataloader(
    samples: Dataset[Item], numbers: Iterable[list[int]], workers: int, collate_fn: Any
) -> Generator[Any, None, None]:
    """Yield the minibatches of the listed sample numbers, prepared by worker processes.

    The workers end with the generator, so close it. They also end if this process is killed.
    """
    receiver, sender = Pipe(duplex=False)
    loader: DataLoader[Any] = DataLoader(
        samples,
        batch_sampler=numbers,
        num_workers=workers,
        collate_fn=collate_fn,
        worker_init_fn=partial(_init_worker, receiver, sender),
        prefetch_factor=4 if workers else None,
    )
    with receiver, sender:
        batches = iter(loader)
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except UserError as error:  # of a worker: the dataloader added a traceback to its message
                raise UserError(str(error).strip().rpartition("UserError: ")[2]) from None
            yield batch


def _init_worker(receiver: Connection, sender: Connection, worker: int) -> None:
    """Ignore signals in a worker, and end it when the training process closes its end of the pipe, or dies.

    Schedulers send SIGTERM to all processes of a job. If a worker stopped, the run would fail before it
    writes its checkpoint. For the same reason the dataloader cannot end it by SIGTERM.
    """
    for number in stop_signals():
        signal.signal(number, signal.SIG_IGN)
    sender.close()  # a copy, which would keep the pipe open
    threading.Thread(target=_exit_at_end, args=(receiver,), daemon=True).start()


def _exit_at_end(receiver: Connection) -> None:
    """Exit when the other end of the pipe is closed; nothing is ever sent.

    Any other exit code would be an error to the dataloader.
    """
    wait([receiver])
    os._exit(0)
