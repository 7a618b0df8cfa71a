"""Run by test_recurrent.py in a process of its own for another backend: prints the largest gap to PyTorch of each network."""

import json
import sys
from pathlib import Path

import make_recurrent
from test_recurrent import answers, golden, loaded

gaps = {}
for kind in make_recurrent.KINDS:
    weights, expected = golden(kind)
    model = loaded(Path(sys.argv[1]), kind, weights)
    gaps[kind] = float(abs(answers(model, make_recurrent.series()) - expected).max())
print(json.dumps(gaps))
