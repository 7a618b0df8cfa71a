"""Run by test_on_jax.py in a process of that backend: the tests that are marked, and what is compared between the two."""

import json
import sys
from pathlib import Path

import pytest
import robustness_check

if __name__ == "__main__":
    folder, *files = sys.argv[1:]
    (Path(folder) / "attacks.json").write_text(json.dumps(robustness_check.found()))
    sys.exit(pytest.main(["-m", "also_jax and not slow", "-p", "no:cacheprovider", *files]))
