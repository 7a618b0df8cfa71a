"""Makes the pictures of docs/evaluating.md and prints its figures: `python docs/pictures/evaluating.py`."""

import tempfile
from pathlib import Path

import export
import zoo

HERE = Path(__file__).parent


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        simple = zoo.train("logistic_regression", "digits", out=home / "logistic_regression-digits", quiet=True)
        run = zoo.train("mlp", "digits", out=home / "mlp-digits", quiet=True)
        print(zoo.evaluate.compare(simple, run), "\n")
        print(zoo.evaluate.gap(run), "\n")
        found = zoo.evaluate.calibrate(run)
        print(found, "\n")
        found.plot(HERE / "evaluate-reliability.png")
        bundle = export.to_bundle(
            run, home / "store" / "digits" / "1", calibrate="temperature", conformal=0.95, max_drop=0.01
        )
        print(bundle.manifest.calibration, bundle.manifest.conformal, "\n")
        page = zoo.evaluate(bundle, "digits", precision="int8").save(home / "page")
        (HERE / "evaluate-worst.png").write_bytes((page.parent / "worst.png").read_bytes())
        grown = zoo.evaluate.learning_curve("mlp", "digits", shares=(0.05, 0.1, 0.25, 0.5, 1.0), quiet=True)
        print(grown, "\n")
        grown.plot(HERE / "evaluate-growth.png")
        print(zoo.evaluate.cross_validate("mlp", "wine", quiet=True))


if __name__ == "__main__":
    main()
