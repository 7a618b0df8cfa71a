"""Waiting for what happens in another thread or process."""

import time


def until(condition, seconds=30.0):
    """Wait until it holds; fails when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it did not happen within {seconds} s"
        time.sleep(0.005)
