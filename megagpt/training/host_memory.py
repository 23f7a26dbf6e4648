"""Memory of the C library, kept for the next step instead of given back to the system.

Without it, every tensor of more than a few MB is mapped, and zeroed by the kernel page by page, each time it is made.
On the CPU that was a quarter of a step of gpt3-base. glibc alone; elsewhere nothing is done.
"""

import ctypes

# malloc.h of glibc
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """From now on, allocations of any size come from the heap, which does not shrink. Whether the library obeyed.

    What a process holds afterwards is its peak; for training that is what each step needs again.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return bool(library.mallopt(_M_MMAP_MAX, 0)) and bool(library.mallopt(_M_TRIM_THRESHOLD, -1))
