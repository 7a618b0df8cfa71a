"""Make the pictures of docs/robustness.md and print their figures: python docs/pictures/robustness.py.

Trains LeNet on digits plainly, on attacked rows and on noisy rows, into a temporary folder; a few minutes.
"""

import sys
import tempfile
from pathlib import Path

from PIL import Image

import zoo
from zoo.evaluate import robustness

HERE = Path(__file__).parent
ROWS = 200  # attacked


def draw(found: robustness.Robustness, name: str) -> None:
    """A picture with few colours, so that the repository stays small."""
    path = found.plot(HERE / f"robustness-{name}.png")
    taken = Image.open(path).convert("RGB")
    taken.quantize(64, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{found}\n\n{path.name}: {taken.width}x{taken.height}, {path.stat().st_size // 1000} kB\n", flush=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else scratch)  # runs that are there are used again

        def trained(name: str, adversarial: str) -> object:
            if not (folder / name / "metrics.json").exists():
                zoo.train("lenet", data="digits", out=folder / name, adversarial=adversarial, quiet=True)
            return folder / name

        plain = trained("lenet-digits", "")
        draw(robustness.corrupted(plain), "corruptions")
        limits = dict(epsilons=(4, 8, 16, 32), rows=ROWS)
        draw(robustness.attacked(plain, **limits), "attacks")
        draw(robustness.attacked(trained("lenet-pgd", "pgd:16"), **limits), "hardened")
        draw(robustness.transformed(plain, rows=ROWS), "transformations")
        draw(robustness.certified(trained("lenet-noise", "gaussian:48"), sigmas=(16, 48), rows=100), "certificates")


if __name__ == "__main__":
    main()
