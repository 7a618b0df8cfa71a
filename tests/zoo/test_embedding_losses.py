"""ArcFace and triplet losses against the formulas in plain numpy, and against torch where it is installed."""

import keras
import numpy as np
import pytest
import references

from zoo import tasks
from zoo.tasks.embedding_losses import ArcFace, ClassCentres, PairArea, Triplet
from zoo.training.gradients import gradients

IDENTITIES = np.array([0, 0, 0, 1, 1, 2, 3, 3], np.float32)[:, None]


def _embeddings(rows=8, length=5, seed=0):
    drawn = np.random.default_rng(seed).standard_normal((rows, length))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def _arcface(cosines, identities, margin, scale):
    """Row by row: angle, plus margin, cosine, softmax."""
    found = []
    for row, own in zip(cosines.astype(np.float64), identities.astype(int).ravel(), strict=True):
        logits = row.copy()
        angle = np.arccos(row[own])
        logits[own] = np.cos(angle + margin) if angle + margin < np.pi else row[own] - margin * np.sin(margin)
        logits *= scale
        found.append(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[own])
    return np.array(found)


def _triplet(embeddings, identities, margin, mining):
    """Anchor by anchor, with loops over rows."""
    ids = identities.ravel()
    squared = ((embeddings[:, None].astype(np.float64) - embeddings[None]) ** 2).sum(axis=-1)
    found = np.zeros(len(ids))
    for anchor in range(len(ids)):
        own = [row for row in range(len(ids)) if ids[row] == ids[anchor] and row != anchor]
        others = [row for row in range(len(ids)) if ids[row] != ids[anchor]]
        if not own or not others:
            continue
        if mining == "hard":
            nearest = min(squared[anchor, row] for row in others)
            found[anchor] = max(0.0, max(squared[anchor, row] for row in own) - nearest + margin)
            continue
        for row in own:
            beyond = [squared[anchor, other] for other in others if squared[anchor, other] > squared[anchor, row]]
            negative = min(beyond) if beyond else max(squared[anchor, other] for other in others)
            found[anchor] += max(0.0, squared[anchor, row] - negative + margin) / len(own)
    return found


def _call(loss, y, outputs):
    return keras.ops.convert_to_numpy(loss.call(keras.ops.convert_to_tensor(y), keras.ops.convert_to_tensor(outputs)))


@pytest.mark.parametrize(("margin", "scale"), [(0.5, 64.0), (0.3, 16.0), (0.0, 10.0), (2.5, 8.0)])
def test_arcface_is_cross_entropy_with_a_larger_angle(margin, scale):
    cosines = np.random.default_rng(0).uniform(-0.99, 0.99, (8, 4)).astype(np.float32)
    expected = _arcface(cosines, IDENTITIES, margin, scale)
    np.testing.assert_allclose(_call(ArcFace(margin, scale), IDENTITIES, cosines), expected, rtol=2e-5, atol=2e-5)


def test_arcface_is_finite_where_cosines_are_at_their_ends_and_not_defined_without_a_centre():
    cosines = np.array([[1, -1], [-1, 1], [1, 1]], np.float32)
    y = np.array([[0], [0], [7]], np.float32)
    found = _call(ArcFace(), y, cosines)
    assert np.isfinite(found[:2]).all() and found[0] < 1e-3 < found[1] and np.isnan(found[2])
    centred = keras.Sequential([keras.Input((3,)), ClassCentres(2)])
    embeddings = keras.ops.convert_to_numpy(centred.layers[0].centres)[[0, 0]].astype(np.float32)  # angles of 0
    value, slopes = gradients(centred, ArcFace(), embeddings, np.zeros((2, 1), np.float32))
    assert np.isfinite(value) and all(np.isfinite(slope).all() for slope in slopes)


@pytest.mark.parametrize("mining", ["hard", "semi_hard"])
@pytest.mark.parametrize("margin", [0.2, 1.0])
def test_triplets_are_those_of_the_papers(mining, margin):
    for seed in range(3):
        embeddings = _embeddings(seed=seed)
        expected = _triplet(embeddings, IDENTITIES, margin, mining)
        assert expected[5] == 0 and (expected > 0).any()  # row 5 is alone
        np.testing.assert_allclose(_call(Triplet(margin, mining), IDENTITIES, embeddings), expected, atol=1e-5)


def test_embeddings_need_not_have_length_one():
    embeddings = _embeddings()
    np.testing.assert_allclose(
        _call(Triplet(), IDENTITIES, 7 * embeddings), _call(Triplet(), IDENTITIES, embeddings), atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("margin", [0.5, 0.0])
def test_arcface_and_its_gradient_equal_torchs(margin):
    if not references.installed("torch"):
        pytest.skip("torch is a test-only reference and not installed")
    import torch

    inputs = _embeddings()
    model = keras.Sequential([keras.Input((5,)), ClassCentres(4)])
    centres = torch.tensor(keras.ops.convert_to_numpy(model.layers[0].centres), requires_grad=True)
    value, (slope,) = gradients(model, ArcFace(margin), inputs, IDENTITIES)
    y = torch.from_numpy(IDENTITIES.ravel().astype(np.int64))
    cosines = torch.from_numpy(inputs) @ torch.nn.functional.normalize(centres).T
    true = torch.nn.functional.one_hot(y, 4).bool()
    turned = torch.cos(torch.arccos(cosines) + margin)  # no angle comes near 180 degrees here
    logits = torch.where(true, turned, cosines)
    expected = torch.nn.functional.cross_entropy(64 * logits, y)
    expected.backward()
    assert value == pytest.approx(float(expected.detach()), rel=1e-5)
    np.testing.assert_allclose(slope, centres.grad.numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_batch_hard_triplets_and_their_gradient_equal_torchs():
    if not references.installed("torch"):
        pytest.skip("torch is a test-only reference and not installed")
    import torch

    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(5), keras.layers.UnitNormalization()])
    inputs = np.random.default_rng(2).standard_normal((8, 6)).astype(np.float32)
    value, (slope, _) = gradients(model, Triplet(), inputs, IDENTITIES)
    kernel = torch.tensor(keras.ops.convert_to_numpy(model.layers[0].kernel), requires_grad=True)
    unit = torch.nn.functional.normalize(torch.from_numpy(inputs) @ kernel)
    y = torch.from_numpy(IDENTITIES.ravel())
    squared = ((unit[:, None] - unit[None]) ** 2).sum(-1)
    alike = y[:, None] == y[None]
    own = alike & ~torch.eye(8, dtype=torch.bool)
    farthest = torch.where(own, squared, 0.0).amax(1)
    nearest = torch.where(alike, 8.0, squared).amin(1)
    expected = torch.where(own.any(1), torch.relu(farthest - nearest + 0.2), 0.0).mean()
    expected.backward()
    assert value == pytest.approx(float(expected.detach()), rel=1e-5)
    np.testing.assert_allclose(slope, kernel.grad.numpy(), atol=1e-5)


def test_the_metric_is_the_area_under_the_roc_curve_of_all_pairs():
    from sklearn.metrics import roc_auc_score

    embeddings = _embeddings(40, 3, seed=4)
    identities = np.random.default_rng(5).integers(0, 4, 40)
    embeddings[:, 0] += identities  # so that identities differ somewhat
    metric = PairArea()
    metric.update_state(identities.astype(np.float32)[:, None], embeddings)
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    left, right = np.triu_indices(40, 1)
    expected = roc_auc_score(identities[left] == identities[right], (unit[left] * unit[right]).sum(axis=1))
    assert float(metric.result()) == pytest.approx(expected, abs=5e-3)
    assert 0.6 < expected < 0.99
    metric.reset_state()
    assert float(metric.result()) == 0.0


@pytest.mark.parametrize(
    ("name", "kind", "facts"),
    [
        ("", Triplet, dict(margin=0.2, mining="hard")),
        ("arcface", ArcFace, dict(margin=0.5, scale=64.0)),
        ("arcface:0.3:16", ArcFace, dict(margin=0.3, scale=16.0)),
        ("semi_hard_triplet:0.4", Triplet, dict(margin=0.4, mining="semi_hard")),
    ],
)
def test_losses_have_names_with_figures(name, kind, facts):
    loss = tasks.get("embedding").loss(name, 0.0)
    assert isinstance(loss, kind) and {key: vars(loss)[key] for key in facts} == facts
    assert type(loss).from_config(loss.get_config()).get_config() == loss.get_config()


@pytest.mark.parametrize("name", ["contrastive", "arcface:", "arcface:1:2:3", "triplet:-1", "triplet:a"])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match=r"loss must be arcface\[:MARGIN\[:SCALE\]\], triplet"):
        tasks.get("embedding").loss(name, 0.0)


def test_figures_out_of_range_and_smoothed_labels_are_refused():
    with pytest.raises(ValueError, match=r"margin must lie in \[0, pi\)"):
        tasks.get("embedding").loss("arcface:4", 0.0)
    with pytest.raises(ValueError, match="mining must be 'hard' or 'semi_hard', got 'soft'"):
        Triplet(mining="soft")
    with pytest.raises(ValueError, match=r"no labels to smooth, got label_smoothing=0\.1"):
        tasks.get("embedding").loss("", 0.1)


def test_every_batch_has_rows_of_one_identity_side_by_side():
    targets = np.repeat(np.arange(5), [1, 4, 7, 8, 12])
    order = tasks.get("embedding").order(targets, np.random.default_rng(0))
    assert sorted(order) == list(range(len(targets)))
    together = np.split(targets[order], np.flatnonzero(np.diff(targets[order])) + 1)
    assert sum(len(run) == 1 for run in together) <= 2  # the identity of one row, and no remainder of the others is 1
    other = tasks.get("embedding").order(targets, np.random.default_rng(1))
    assert not np.array_equal(order, other)
