"""The threads of one call: started together, gone before it returns."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed

THREADS = 4
"""While some wait for the device, the others hash: on two cores four were measured faster than three, six no faster."""


def run_threads(count: int, work: Callable[[threading.Event], None]) -> None:
    """Run ``work(stop)`` on ``count`` threads; the first error sets ``stop``, waits for all, and is raised."""
    stop = threading.Event()
    with ThreadPoolExecutor(max(1, count), thread_name_prefix="holdfast-packs") as pool:
        futures = [pool.submit(work, stop) for _ in range(max(1, count))]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            stop.set()
            raise
