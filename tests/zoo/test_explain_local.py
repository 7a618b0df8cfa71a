"""LIME, occlusion and RISE over games whose answers are known."""

from types import SimpleNamespace

import numpy as np
import pytest

from zoo.explain import local, methods
from zoo.explain.clock import Clock
from zoo.explain.players import Game

METHODS = ["lime", "occlusion", "rise"]


def game_of(worth, players, tree=None, varying=None):
    """A game whose answers are `worth` of 0/1 rows (coalitions, players), and which remembers what it was asked."""

    def play(masks):
        game.asked.append(masks.copy())
        game.calls += len(masks)
        return worth(masks.astype(np.float64))

    everyone = np.ones(players, bool) if varying is None else varying
    game = Game(players, tree, play, lambda values: values, everyone, {})
    game.asked = []
    return game


def solve(method, game, max_evals=None, seed=0, clock=None, **settings):
    return getattr(local, method)(game, max_evals=max_evals, seed=seed, clock=clock or Clock(), **settings)


WEIGHT = np.array([2.0, -1.0, 0.0, 0.5, 3.0, 0.0, -2.0, 1.0])


def line(z):
    return 4 + z @ WEIGHT


def test_lime_finds_a_linear_model_but_for_the_ridge():
    found = solve("lime", game_of(line, 8), 5000)
    np.testing.assert_allclose(found.values, WEIGHT, atol=0.02)
    assert found.base == 4 and found.settings["samples"] == 4999 and found.settings["r2"] > 0.999
    assert found.complete and np.abs(found.values - WEIGHT).max() > 1e-6  # the penalty is there


def test_lime_is_the_weighted_ridge_of_its_samples():
    def worth(z):
        return np.tanh(z @ WEIGHT) + z[:, 0] * z[:, 1]

    game = game_of(worth, 8)
    found = solve("lime", game, 300)
    masks = np.concatenate(game.asked)[1:].astype(float)  # the whole input counts as a sample, the empty one does not
    weight = np.exp(-(((1 - masks.sum(axis=1) / np.sqrt(8 * np.maximum(masks.sum(axis=1), 1))) / 0.25) ** 2))
    design = np.column_stack([masks, np.ones(len(masks))])
    penalty = np.diag([1.0] * 8 + [0.0])
    expected = np.linalg.solve(design.T @ (design * weight[:, None]) + penalty, design.T @ (weight * worth(masks)))
    np.testing.assert_allclose(found.values, expected[:8], atol=1e-9)
    sizes = np.bincount(masks[1:].sum(axis=1).astype(int), minlength=9)
    assert sizes.min() > 15 and sizes.max() < 60  # every size is as likely


def test_limes_errors_are_those_of_other_samples():
    def worth(z):
        return np.tanh(z @ WEIGHT / 2) + z[:, 0] * z[:, 1]

    draws = [solve("lime", game_of(worth, 8), 300, seed) for seed in range(60)]
    scatter = np.std([draw.values for draw in draws], axis=0)
    told = np.sqrt(np.mean([draw.standard_error**2 for draw in draws], axis=0))
    assert (np.abs(np.log(told / scatter)) < np.log(1.5)).all()
    assert np.isnan(solve("lime", game_of(worth, 8), 6).standard_error).all()


def test_occlusion_of_single_players_is_the_drop():
    found = solve("occlusion", game_of(lambda z: line(z) + z[:, 0] * z[:, 1], 8))
    np.testing.assert_allclose(found.values, np.add(WEIGHT, [1, 1, 0, 0, 0, 0, 0, 0]), atol=1e-12)
    assert found.settings["evaluations"] == 10 and found.standard_error is None and found.complete


def test_occlusion_slides_a_square_and_averages_what_covers_a_tile():
    bright = np.zeros((6, 5))
    bright[2, 3], bright[5, 0] = 1.0, 2.0
    found = solve("occlusion", game_of(lambda z: z @ bright.ravel(), 30, (6, 5)), window=2)
    expected, covered = np.zeros((6, 5)), np.zeros((6, 5))
    for top in range(5):
        for left in range(4):
            expected[top : top + 2, left : left + 2] += bright[top : top + 2, left : left + 2].sum()
            covered[top : top + 2, left : left + 2] += 1
    np.testing.assert_allclose(found.values.reshape(6, 5), expected / covered, atol=1e-12)
    assert found.settings["evaluations"] == 2 + 20 and found.settings["window"] == 2


def test_occlusion_with_few_evaluations_takes_larger_squares_that_cover_everything():
    game = game_of(lambda z: z.sum(axis=1), 900, (30, 30))
    found = solve("occlusion", game, 60)
    assert found.settings["evaluations"] == game.calls <= 60 and found.settings["step"] > 1
    assert found.values.min() > 0 and found.complete
    assert solve("occlusion", game_of(lambda z: z.sum(axis=1), 900, (30, 30))).settings["window"] == 4
    with pytest.raises(ValueError, match="occlusion needs 42 evaluations here, got max_evals=20"):
        solve("occlusion", game_of(lambda z: z.sum(axis=1), 40), 20)


@pytest.mark.parametrize("grid", [(16, 16), (20, 9)])
def test_rise_is_the_mean_answer_where_a_tile_is_shown(grid):
    rows, columns = grid
    bright = np.zeros(grid)
    bright[3, 2] = 1.0

    game = game_of(lambda z: z @ bright.ravel(), rows * columns, grid)
    found = solve("rise", game, 3000)
    masks = np.concatenate(game.asked[1:])
    answers = masks @ bright.ravel()
    expected = (answers @ masks) / masks.sum(axis=0) - answers.mean()
    np.testing.assert_allclose(found.values, expected, atol=1e-12)
    assert found.values.argmax() == 3 * columns + 2 and found.values.max() == pytest.approx(0.5, abs=0.05)
    shown = masks.mean(axis=0)
    assert np.abs(shown - 0.5).max() < 0.1  # half of all tiles, wherever they are
    pictures = masks.reshape(-1, rows, columns)
    assert (pictures[:, 1:] == pictures[:, :-1]).mean() > 0.75  # in coherent pieces
    assert found.standard_error[-1] < 0.05 and abs(found.values[-1]) < 4 * found.standard_error[-1]


def test_rises_errors_are_those_of_other_masks():
    draws = [solve("rise", game_of(lambda z: np.tanh(line(z)), 8), 400, seed) for seed in range(80)]
    scatter = np.std([draw.values for draw in draws], axis=0)
    told = np.sqrt(np.mean([draw.standard_error**2 for draw in draws], axis=0))
    assert (np.abs(np.log(told / scatter)) < np.log(1.5)).all()


@pytest.mark.parametrize("method", METHODS)
def test_players_that_equal_the_background_get_nothing_and_are_never_left_out(method):
    varying = np.array([True, False, True, True, False, True, True, False])
    game = game_of(lambda z: line(np.where(varying, z, 0)), 8, (2, 4), varying)
    found = solve(method, game, 500)
    masks = np.concatenate(game.asked)
    assert masks[1:, ~varying].all() and (found.values[~varying] == 0).all()
    assert found.values[0] > 0 > found.values[6]
    still = game_of(line, 8, (2, 4), np.zeros(8, bool))
    assert (solve(method, still, 500).values == 0).all() and still.calls == 2


@pytest.mark.parametrize("players", [0, 1])
@pytest.mark.parametrize("method", [name for name, each in methods.METHODS.items() if each.needs == "predict"])
def test_a_lone_player_gets_the_whole_difference_and_none_get_nothing(method, players):
    game = game_of(lambda z: 3 + 2 * z.sum(axis=1), players)
    found = methods.METHODS[method].function(game, max_evals=None, seed=0, clock=Clock())
    assert found.values.tolist() == [2.0] * players and (found.base, found.complete, game.calls) == (3, True, 2)


@pytest.mark.parametrize("method", METHODS)
def test_time_that_runs_out_gives_what_is_known(method, monkeypatch):
    watch = SimpleNamespace(now=0.0)
    monkeypatch.setattr("zoo.explain.clock.time", SimpleNamespace(perf_counter=lambda: watch.now))
    weight = np.linspace(0, 1, 400)

    def slow(z):
        watch.now += 0.01 * len(z)
        return z @ weight

    nothing = solve(method, game_of(slow, 400, (20, 20)), clock=Clock(0))
    assert not nothing.complete and nothing.settings["evaluations"] == 2 and (nothing.values == 0).all()
    if method != "occlusion":
        assert np.isnan(nothing.standard_error).all()
    clock = Clock(1)
    some = solve(
        method, game_of(slow, 400, (20, 20)), 4000, clock=clock, **({"window": 2} if method == "occlusion" else {})
    )
    assert not some.complete and 50 < some.settings["evaluations"] < 120  # 100 fit in
    assert np.corrcoef(some.values, weight)[0, 1] > 0.2


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_values(method):
    one, two, other = (solve(method, game_of(line, 8), 200, seed).values for seed in (1, 1, 2))
    assert (one == two).all()
    assert method == "occlusion" or (one != other).any()


def test_wrong_calls():
    with pytest.raises(ValueError, match="max_evals must be at least 2"):
        solve("lime", game_of(line, 8), 1)
    with pytest.raises(ValueError, match="window must be 1 to 4 tiles, got 5"):
        solve("occlusion", game_of(line, 8, (2, 4)), window=5)
    with pytest.raises(ValueError, match="players without a grid are left out one by one, got window=2"):
        solve("occlusion", game_of(line, 8), window=2)
    with pytest.raises(ValueError, match="NaN or infinity when something is left out"):
        solve("rise", game_of(lambda z: np.where(z.sum(axis=1) == 3, np.nan, 1.0), 8))
