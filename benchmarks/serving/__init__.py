"""The server measured against others, under long load, under faults and under nonsense; see `__main__.py`."""
