"""Repeats the proven recipes over seeds, exports each model and scores its FP32 and INT8 files on the held-out rows.

    python benchmarks/recipes.py [--models mlp lenet faster_rcnn] [--seeds 0 1 2]

Ends with status 1 when a run stays below the score its recipe promises, or INT8 loses more than half a point.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from record import append

ALLOWED_DROP = 0.005


def main() -> int:
    import export
    import zoo
    from zoo.recipes import PROVEN

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=sorted({model for model, _ in PROVEN}))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    given = parser.parse_args()
    missed = 0
    for model, data in PROVEN:
        for seed in given.seeds if model in given.models else ():
            with tempfile.TemporaryDirectory() as folder:
                run = zoo.train(model, data=data, out=Path(folder) / "run", seed=seed, quiet=True)
                bundle = export.to_bundle(run.model, Path(folder) / "store" / "proven" / "1", data=run.data, run=run)
            forms = bundle.manifest.precisions
            int8 = forms["int8"].score if "int8" in forms else None
            row = {
                "model": model,
                "data": data,
                "seed": seed,
                "epochs": len(run.history),
                "train_s": run.metrics["seconds"],
                "expected": run.recipe.expected,
                "keras": round(run.metrics["test"], 4),
                "baseline": round(run.metrics["baseline"], 4),
                "onnx_fp32": round(forms["fp32"].score, 4),
                "onnx_int8": "refused" if int8 is None else round(int8, 4),
                "parity": f"{forms['fp32'].parity:.1e}",
            }
            append("recipes", row)
            missed += run.metrics["test"] < (run.recipe.expected or 0.0)
            missed += int8 is None or forms["fp32"].score - int8 > ALLOWED_DROP
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
