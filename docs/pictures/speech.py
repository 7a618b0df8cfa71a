"""Draw the picture of docs/speech.md: python docs/pictures/speech.py RUN, a folder that `zoo train speech_ctc` wrote."""

import sys
from pathlib import Path

import zoo
from zoo import tasks

if __name__ == "__main__":
    report = zoo.evaluate(sys.argv[1])
    words = (report.y == 1).sum(axis=1)  # spaces
    rows = [int(row) for count in (3, 1) for row in (words == count).nonzero()[0][:2]]
    tasks.get(report.task).show(report, rows, Path(__file__).with_name("speech.png"))
