"""Threads that wait for stores, and keep neither a process nor a dropped reader waiting."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any


class DaemonPool:
    """A pool as `concurrent.futures` has it, whose threads end with the process or with the pool.

    `ThreadPoolExecutor` finishes all that is queued before a process may end: minutes, on a slow line.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._queue: SimpleQueue = SimpleQueue()
        self._started = 0
        self._lock = threading.Lock()
        weakref.finalize(self, _stop, self._queue, threads)

    def submit(self, job: Callable[[], Any]) -> Future:
        future: Future = Future()
        self._queue.put((future, job))
        with self._lock:
            if self._started < self.threads:
                self._started += 1
                name = f"walrus_hf-{self._started}"
                threading.Thread(target=_work, args=(self._queue,), name=name, daemon=True).start()
        return future


def _work(queue: SimpleQueue) -> None:
    while (item := queue.get()) is not None:
        future, job = item
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(job())
            except BaseException as error:  # it belongs to whoever asks for the result
                future.set_exception(error)
        del item, future, job  # an idle thread holds on to nothing


def _stop(queue: SimpleQueue, threads: int) -> None:
    try:
        while (item := queue.get_nowait()) is not None:
            item[0].cancel()
    except Empty:
        pass
    for _ in range(threads):
        queue.put(None)
