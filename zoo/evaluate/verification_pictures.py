"""Pictures of a verification: acceptance by threshold, similarities of both kinds of pairs, and pairs side by side."""

from pathlib import Path

import numpy as np

from zoo.evaluate.check_pictures import new_figure


def curve(judged, score, path: str | Path) -> Path:
    """True against false acceptance, and how similar pairs of one and of two identities are.

    Args:
        judged: `zoo.evaluate.verification.Verification`.
        score: verification accuracy as a `zoo.tasks.Interval`.
        path: file to write.
    """
    figure = new_figure(9.4, 4.1)
    left, right = figure.subplots(1, 2)
    false, true, _ = judged.roc
    least = 1 / max(1, int((~judged.pairs.same).sum()))
    left.plot(np.maximum(false, least), true, color="tab:blue", drawstyle="steps-post")
    verdicts, same = judged.verdicts, judged.pairs.same
    left.plot(
        max(float(np.mean(verdicts[~same])), least),
        np.mean(verdicts[same]),
        "o",
        color="tab:red",
        label="at the folds' thresholds",
    )
    left.plot([least, 1], [least, 1], color="grey", linewidth=1, linestyle="--", label="by chance")
    left.set(xscale="log", xlim=(least, 1), ylim=(0, 1.02))
    left.set(xlabel="share of pairs of two identities accepted", ylabel="share of pairs of one identity accepted")
    left.set_title(f"Accuracy {score.score:.4f} [{score.low:.4f}, {score.high:.4f}]", fontsize=10)
    left.grid(alpha=0.3)
    left.legend(fontsize=8, loc="lower right")
    bins = np.linspace(min(-0.2, float(judged.similarity.min())), 1, 60)
    for kind, name, colour in ((True, "one identity", "tab:green"), (False, "two identities", "tab:orange")):
        right.hist(judged.similarity[same == kind], bins, color=colour, alpha=0.6, label=name)
    right.axvline(judged.threshold, color="black", linewidth=1, label=f"threshold {judged.threshold:.3f}")
    right.set(xlabel="cosine similarity", ylabel="pairs", title="")
    right.set_title(f"{len(same):,} pairs in {len(judged.accuracies)} folds", fontsize=10)
    right.legend(fontsize=8)
    figure.savefig(path)
    return Path(path)


def pairs(rows: list[dict], images: np.ndarray, path: str | Path) -> Path:
    """The two pictures of each pair side by side, with truth and similarity.

    Args:
        rows: `row` and `other_row`, `true`, `similarity` and `threshold` of each pair.
        images: uint8 `(rows, height, width, channels)` of the whole split.
        path: file to write.
    """
    across = min(4, max(1, len(rows)))
    down = max(1, -(-len(rows) // across))
    height, width = images.shape[1:3]
    wide = 2.4
    figure = new_figure(wide * across, (wide * 0.5 * min(2.0, height / width) + 0.5) * down + 0.4)
    figure.suptitle(f"The {len(rows)} pairs judged most wrongly" if rows else "No pair was judged wrongly", fontsize=11)
    places = np.ravel(figure.subplots(down, across, squeeze=False))
    for axes in places:
        axes.axis("off")
    gap = np.full((height, max(1, width // 12), images.shape[-1]), 255, np.uint8)
    for axes, row in zip(places, rows, strict=False):
        picture = np.concatenate([images[row["row"]], gap, images[row["other_row"]]], axis=1)
        flat = picture.shape[-1] not in (3, 4)
        axes.imshow(picture[..., 0] if flat else picture, cmap="gray" if flat else None, vmin=0, vmax=255)
        sign = ">" if row["similarity"] > row["threshold"] else "≤"
        title = f"{row['true']}, {row['similarity']:.2f} {sign} {row['threshold']:.2f}\nrows {row['row']} and {row['other_row']}"
        axes.set_title(title, fontsize=8)
    figure.savefig(path)
    return Path(path)
