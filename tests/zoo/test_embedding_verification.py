"""Verification on pairs against brute force and scikit-learn; pairs as they are drawn, and as a file gives them."""

import numpy as np
import pytest

from zoo import tasks
from zoo.data.targets import Identities
from zoo.evaluate import metrics, verification
from zoo.evaluate.verification import Pairs


def _people(count=4, rows=60, spread=1.2, seed=0):
    random = np.random.default_rng(seed)
    identities = np.repeat(np.arange(count), rows)
    centres = random.standard_normal((count, 16))
    return centres[identities] + spread * random.standard_normal((len(identities), 16)), identities


def test_folds_share_no_row_or_where_there_are_enough_no_identity():
    for identities in (np.repeat(np.arange(4), 60), np.repeat(np.arange(50), 6)):
        pairs = verification.draw(identities, seed=3)
        assert (identities[pairs.left] == identities[pairs.right]).tolist() == pairs.same.tolist()
        assert (pairs.left != pairs.right).all()
        users = [set(pairs.left[pairs.fold == fold]) | set(pairs.right[pairs.fold == fold]) for fold in range(10)]
        assert sum(map(len, users)) == len(set.union(*users))
        for fold in range(10):
            assert pairs.same[pairs.fold == fold].mean() == 0.5
        if len(np.unique(identities)) >= 40:
            people = [set(identities[list(rows)]) for rows in users]
            assert sum(map(len, people)) == len(set.union(*people))


def test_equal_seeds_draw_equal_pairs():
    identities = np.repeat(np.arange(6), 30)
    first, again, other = (verification.draw(identities, seed=seed) for seed in (1, 1, 2))
    assert all(np.array_equal(one, two) for one, two in zip(first, again, strict=True))
    assert not np.array_equal(first.left, other.left)


def test_each_folds_threshold_is_the_best_of_the_other_folds():
    embeddings, identities = _people()
    found = verification.verify(embeddings, identities)
    cuts = np.unique(found.similarity)
    for fold, limit in enumerate(found.thresholds):
        others = found.pairs.fold != fold
        similarity, same = found.similarity[others], found.pairs.same[others]
        best = max(((similarity > cut) == same).mean() for cut in [-2, *cuts])
        assert ((similarity > limit) == same).mean() == pytest.approx(best)
        own = found.pairs.fold == fold
        assert found.accuracies[fold] == ((found.similarity[own] > limit) == found.pairs.same[own]).mean()
    assert found.accuracy == pytest.approx(np.mean(found.verdicts == found.pairs.same))
    assert 0.7 < found.accuracy < 0.95


def test_figures_agree_with_scikit_learn():
    from sklearn.metrics import roc_auc_score, roc_curve

    embeddings, identities = _people(rows=120)
    found = verification.verify(embeddings, identities)
    measures = verification.measures(embeddings, identities)
    whole = np.ones((1, len(identities)))
    figures = {name: float(measure(whole)[0]) for name, measure in measures.items()}
    same = found.pairs.same
    assert figures["verification_accuracy"] == found.accuracy
    assert figures["roc_auc"] == pytest.approx(roc_auc_score(same, found.similarity))
    false, true, _ = roc_curve(same, found.similarity, drop_intermediate=False)
    assert figures["equal_error_rate"] == pytest.approx(
        (false + 1 - true)[np.abs(false - 1 + true).argmin()] / 2, abs=2e-3
    )
    for rate in (0.1, 0.01):
        assert figures[f"tar_at_far_{rate:g}"] == pytest.approx(true[false <= rate].max())
    assert "tar_at_far_0.001" not in figures  # 1,500 pairs are too few
    np.testing.assert_allclose(
        sorted(zip(*found.roc[:2], strict=True)), sorted(zip(false, true, strict=True)), atol=1e-12
    )


def test_a_row_drawn_twice_counts_as_two_rows():
    embeddings, identities = _people(rows=30)
    measures = verification.measures(embeddings, identities)
    one = {name: float(measure(np.ones((1, len(identities))))[0]) for name, measure in measures.items()}
    three = {name: float(measure(np.full((1, len(identities)), 3.0))[0]) for name, measure in measures.items()}
    assert three == pytest.approx(one)
    without = np.ones((1, len(identities)))
    without[0, identities == 0] = 0  # as if these rows were not there
    pairs = verification.draw(identities)
    kept = (identities[pairs.left] > 0) & (identities[pairs.right] > 0)
    rest = verification.verify(embeddings, identities, Pairs(*(column[kept] for column in pairs)))
    assert float(measures["verification_accuracy"](without)[0]) == pytest.approx(rest.accuracy, abs=0.01)


def test_intervals_hold_the_score_and_grow_with_fewer_rows():
    widths = []
    for rows in (30, 120):
        embeddings, identities = _people(rows=rows)
        y = Identities.packed(identities)
        found = metrics.intervals("embedding", y, embeddings)["verification_accuracy"]
        assert found.low < found.score < found.high
        widths.append(found.high - found.low)
    assert widths[0] > 1.4 * widths[1]


def test_an_answer_that_never_changes_is_right_for_half_of_the_pairs():
    _, identities = _people()
    task = tasks.get("embedding")
    y = Identities.packed(identities)
    assert task.score(y, task.constant(y, len(y), 0)) == 0.5


def test_the_worst_rows_are_the_pairs_farthest_on_the_wrong_side():
    embeddings, identities = _people()
    found = verification.verify(embeddings, identities)
    worst = found.worst(20)
    beyond = np.abs(found.similarity - found.limits)
    assert (found.verdicts[worst] != found.pairs.same[worst]).all()
    assert (np.diff(beyond[worst]) <= 0).all()
    losses = tasks.get("embedding").losses(Identities.packed(identities), embeddings)
    assert losses.max() == pytest.approx(beyond[worst[0]])
    assert losses[found.pairs.left[worst[0]]] == losses[found.pairs.right[worst[0]]] == losses.max()


def test_given_pairs_are_judged_and_no_others():
    _, identities = _people(count=6, rows=4)
    listed = [(0, 1, 0), (4, 5, 0), (0, 4, 0), (5, 9, 0), (8, 9, 1), (12, 13, 1), (8, 12, 1), (1, 13, 1)]
    y = Identities.packed(identities, listed)
    pairs = verification.given(y)
    assert sorted(zip(pairs.left.tolist(), pairs.right.tolist(), pairs.fold.tolist(), strict=True)) == sorted(listed)
    assert pairs.same.tolist() == (identities[pairs.left] == identities[pairs.right]).tolist()
    order = np.random.default_rng(0).permutation(len(y))  # a split shuffles its rows
    moved = verification.given(y[order])
    assert {frozenset(order[[one, two]]) for one, two in zip(moved.left, moved.right, strict=True)} == {
        frozenset(each[:2]) for each in listed
    }
    assert len(verification.given(y[:5])) == 2  # of the pairs only those whose rows are both there
    assert verification.given(Identities.packed(identities)) is None


@pytest.mark.parametrize(
    "identities", [np.zeros(40, int), np.arange(40), np.array([0, 0, 1, 1])], ids=["one", "all different", "few"]
)
def test_rows_that_give_no_pairs_are_refused(identities):
    with pytest.raises(ValueError, match="verification needs pairs of one identity and of two in at least two folds"):
        verification.verify(np.ones((len(identities), 3)), identities)
