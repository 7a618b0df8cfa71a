"""A report as a folder: one page of text, the figures, the pictures and the worst answers."""

import csv
from pathlib import Path

from zoo import tasks
from zoo.evaluate import pictures
from zoo.evaluate.calibration import reliability

_SHOWN = 8


def save(report, folder: Path, worst: int) -> Path:
    """Write the folder; see `Report.save`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(report.to_json(), encoding="utf-8")
    parts = [f"# {report.name}", f"```\n{report}\n```"]
    task = tasks.get(report.task)
    title = task.picture
    parts += [f"## {title}", f"![{title}]({report.plot(folder / 'confusion.png').name})"]
    if report.signature.one_label:
        found = reliability(report.y, report.answers)
        path = pictures.reliability({"as answered": found}, folder / "reliability.png")
        parts += ["## Calibration", f"Expected calibration error {found}.", f"![reliability]({path.name})"]
    if report.history:
        keys = [key for key in report.history[0] if f"val_{key}" in report.history[0] and key != "loss"]
        path = pictures.curves(report.history, keys[0] if keys else "loss", folder / "learning_curve.png")
        parts += ["## Learning curve", f"![learning curve]({path.name})"]
    if task.pictorial and _can_be_drawn(report):
        path = task.show(report, list(range(min(report.rows, _SHOWN))), folder / "examples.png")
        parts += ["## The first rows", f"![first rows]({path.name})"]
    parts += ["## Worst answers", *_worst(report, folder, worst)]
    page = folder / "report.md"
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return page


def _can_be_drawn(report) -> bool:
    return report.x is not None and not {"image", "audio"}.isdisjoint(report.x)


def _worst(report, folder: Path, count: int) -> list[str]:
    rows = report.worst_rows(count)
    if not rows:
        return [f"All {report.rows} rows are answered rightly."]
    with (folder / "worst.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    parts = ["`worst.csv` has them with all columns, `row` counts from 0 in the split."]
    if _can_be_drawn(report):
        path = tasks.get(report.task).show(report, [row["row"] for row in rows], folder / "worst.png")
        return [*parts, f"![worst answers]({path.name})"]
    columns = [name for name in rows[0] if name in ("row", "true", "answer", "error", "probability")]
    table = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = (f"{row[name]:.4g}" if isinstance(row[name], float) else str(row[name]) for name in columns)
        table.append("| " + " | ".join(cells) + " |")
    return [*parts, "\n".join(table)]
