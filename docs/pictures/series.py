"""Draw the picture of docs/series.md: python docs/pictures/series.py RUN, a folder that `zoo train lstm --data sunspots` wrote."""

import sys
from pathlib import Path

import zoo

if __name__ == "__main__":
    report = zoo.evaluate(sys.argv[1])
    print(report)
    report.plot(Path(__file__).with_name("series.png"))
