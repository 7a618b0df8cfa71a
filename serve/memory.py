"""Memory of processes, where the system tells of it."""

import contextlib
import ctypes
import gc
import os
from pathlib import Path


def resident(process: int) -> int:
    """Bytes of memory a process holds; 0 where the system does not tell, or it is gone."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def give_back() -> None:
    """Return this process' freed memory to the system, where the C library can."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
