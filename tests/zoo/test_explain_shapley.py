"""Solvers of games against what is known: linear games, the definition over all orders, axioms, shap."""

from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest

from zoo.explain import Subject, shapley
from zoo.explain.clock import Clock
from zoo.explain.owen import halves
from zoo.explain.players import Game
from zoo.explain.players import game as players_game

SOLVERS = ["exact", "permutation", "kernel", "partition"]


def game_of(worth, players, tree=None, varying=None):
    """A game whose answers are `worth` of 0/1 rows (coalitions, players), and which remembers what it was asked."""

    def play(masks):
        assert masks.dtype == bool and masks.shape[1] == players
        game.asked.append(masks.copy())
        game.calls += len(masks)
        return worth(masks.astype(np.float64))

    everyone = np.ones(players, bool) if varying is None else varying
    game = Game(players, tree, play, lambda values: values, everyone, {"made": "up"})
    game.asked = []
    return game


def linear(players, seed=0):
    """Answers bias + weight @ (x where present, mean where not), and the contributions weight * (x - mean)."""
    random = np.random.default_rng(seed)
    weight, x, mean = random.standard_normal((3, players))
    return lambda z: 0.5 + (mean + z * (x - mean)) @ weight, weight * (x - mean), 0.5 + mean @ weight


def tangled(players, seed):
    """A game with interactions of every order: a random number for each coalition, on top of a squashed sum."""
    random = np.random.default_rng(seed)
    weight, table = random.standard_normal(players), random.standard_normal(2**players)
    return lambda z: np.tanh(z @ weight) + 0.3 * table[(z @ 2.0 ** np.arange(players)).astype(int)]


def smooth(players, seed):
    """A game of any number of players with interactions, such as a network's."""
    random = np.random.default_rng(seed)
    first, second = random.standard_normal((players, 12)) / np.sqrt(players), random.standard_normal(12)
    return lambda z: np.tanh(2 * z @ first) @ second


def by_definition(worth, players, orders=None):
    """Mean over orders of what each player changes when it enters."""
    totals, number = np.zeros(players), 0
    known = {}

    def value(present):
        if present not in known:
            row = np.zeros((1, players))
            row[0, list(present)] = 1
            known[present] = float(worth(row)[0])
        return known[present]

    for order in orders or permutations(range(players)):
        number += 1
        for place, player in enumerate(order):
            totals[player] += value(frozenset(order[: place + 1])) - value(frozenset(order[:place]))
    return totals / number


@pytest.fixture
def watch(monkeypatch):
    """A watch that stands still until it is put forward, for every Clock."""
    watch = SimpleNamespace(now=0.0)
    monkeypatch.setattr("zoo.explain.clock.time", SimpleNamespace(perf_counter=lambda: watch.now))
    return watch


def solve(method, game, max_evals=None, seed=0, clock=None):
    return getattr(shapley, method)(game, max_evals=max_evals, seed=seed, clock=clock or Clock())


@pytest.mark.parametrize("method", SOLVERS)
@pytest.mark.parametrize("players", [9, 40])
def test_a_linear_game_gives_weight_times_distance_from_the_mean(method, players):
    if method == "exact" and players > 15:
        with pytest.raises(ValueError, match="at most 15 players that differ from the background, got 40"):
            solve(method, game_of(linear(players)[0], players))
        return
    worth, contributions, base = linear(players)
    evals = 4000 if method == "partition" else None
    found = solve(method, game_of(worth, players, (1, players)), evals)
    np.testing.assert_allclose(found.values, contributions, atol=1e-9)
    assert found.base == pytest.approx(base, abs=1e-12) and found.complete
    assert found.settings["made"] == "up" and found.settings["evaluations"] > 2
    if found.standard_error is not None:
        assert np.abs(found.standard_error).max() < 1e-6


@pytest.mark.parametrize("method", ["exact", "permutation", "kernel"])
@pytest.mark.parametrize(("players", "seed"), [(2, 0), (3, 1), (5, 2), (6, 3), (7, 4), (8, 5)])
def test_enumeration_is_the_mean_over_all_orders(method, players, seed):
    worth = tangled(players, seed)
    found = solve(method, game_of(worth, players), max_evals=2**players)
    np.testing.assert_allclose(found.values, by_definition(worth, players), atol=1e-9)
    assert found.settings["evaluations"] == 2**players and found.standard_error is None


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("method", ["permutation", "kernel"])
def test_samples_come_near_the_exact_values_and_know_how_near(method, seed):
    worth = smooth(10, seed)
    truth = solve("exact", game_of(worth, 10)).values
    missed, told = [], []
    for draw in range(40):
        found = solve(method, game_of(worth, 10), max_evals=400, seed=draw)
        assert found.values.sum() == pytest.approx(truth.sum(), abs=1e-9)
        missed.append((found.values - truth) ** 2)
        told.append(found.standard_error**2)
    missed, told = np.array(missed), np.array(told)
    assert np.sqrt(missed.mean()) < 0.05 * np.abs(truth).max()
    assert 0.7 < np.sqrt(missed.mean() / told.mean()) < 1.4
    assert np.abs((missed < 4 * told).mean() - 0.95) < 0.06  # within two standard errors
    few = solve(method, game_of(worth, 10), max_evals=100)
    assert np.mean(few.standard_error**2) > told.mean()


def orders_of(tree, players):
    """All orders that keep the branches of a linkage together."""

    def below(node):
        if node < players:
            return [(node,)]
        left, right = (below(int(child)) for child in tree[node - players][:2])
        return [a + b for a in left for b in right] + [b + a for a in left for b in right]

    return below(2 * players - 2)


CHAIN = np.array([[0, 1, 1, 2], [2, 5, 2, 3], [6, 3, 3, 4], [4, 7, 4, 5]], float)
BRANCHES = np.array([[4, 1, 1, 2], [0, 5, 1, 2], [6, 3, 2, 3], [7, 2, 2, 3], [9, 8, 3, 6]], float)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("tree", "players"), [((2, 2), 4), ((2, 3), 6), ((1, 5), 5), ((6, 1), 6), (CHAIN, 5), (BRANCHES, 6)]
)
def test_owen_values_are_the_mean_over_the_orders_of_the_tree(tree, players, seed):
    worth = tangled(players, seed)
    orders = orders_of(halves(*tree) if isinstance(tree, tuple) else tree, players)
    assert len(orders) == 2 ** (players - 1)
    found = solve("partition", game_of(worth, players, tree), max_evals=1000)
    np.testing.assert_allclose(found.values, by_definition(worth, players, orders), atol=1e-9)
    assert found.complete and found.standard_error is None


def test_owen_values_come_near_with_few_evaluations_and_know_how_near():
    worth = smooth(64, 7)
    orders = np.random.default_rng(0)
    tree = halves(8, 8)

    def some_order(node=126):
        if node < 64:
            return [node]
        left, right = (some_order(int(child)) for child in tree[node - 64][:2])
        return left + right if orders.random() < 0.5 else right + left

    truth = by_definition(
        worth, 64, [order for _ in range(400) for order in [some_order()] for order in (order, order[::-1])]
    )
    errors, told = {}, {}
    for evals in (60, 250, 1000):
        found = solve("partition", game_of(worth, 64, (8, 8)), evals)
        assert found.values.sum() == pytest.approx(truth.sum(), abs=1e-9)
        assert found.settings["evaluations"] <= evals
        errors[evals] = np.linalg.norm(found.values - truth) / np.linalg.norm(truth)
        told[evals] = np.linalg.norm(found.standard_error) / np.linalg.norm(truth)
    assert errors[60] > errors[250] > errors[1000]
    assert all(errors[evals] / 3 < told[evals] < 4 * errors[evals] for evals in errors)
    everything = solve("partition", game_of(worth, 64, (8, 8)), 4000)  # 2,730 suffice for every context
    assert everything.standard_error is None and everything.settings["evaluations"] == 2 + 2730
    assert np.linalg.norm(everything.values - truth) < 0.1 * np.linalg.norm(truth)


def test_players_far_from_the_background_are_expected_to_contribute_more():
    random = np.random.default_rng(4)
    tiny = np.where(np.arange(64) % 3, 1.0, 1e-30)
    found = solve("partition", game_of(lambda z: z @ tiny, 64, (8, 8), tiny), 40)
    np.testing.assert_allclose(found.values, tiny, atol=1e-3)
    distance = random.random(64) ** 3 + 0.01
    found = solve("partition", game_of(lambda z: 3 + z @ (2 * distance), 64, (8, 8), distance), 2)
    np.testing.assert_allclose(found.values, 2 * distance, atol=1e-9)
    missed, told = {}, {}
    for seed in range(4):
        alike = (
            np.kron(random.standard_normal((12, 4, 4)), np.ones((2, 2))).reshape(12, 64).T
        )  # neighbours pull one way
        first, second = alike * distance[:, None], random.random(12)

        def worth(z, first=first, second=second):
            return np.tanh(z @ first) @ second

        truth = solve("permutation", game_of(worth, 64), 8_000, seed).values
        for known, given in (("far", distance), ("varying", np.ones(64, bool))):
            found = solve("partition", game_of(worth, 64, (8, 8), given), 50)
            assert found.values.sum() == pytest.approx(truth.sum(), abs=1e-9)
            missed.setdefault(known, []).append(np.linalg.norm(found.values - truth) / np.linalg.norm(truth))
            told.setdefault(known, []).append(np.linalg.norm(found.standard_error) / np.linalg.norm(truth))
    assert np.mean(missed["far"]) < 0.9 * np.mean(missed["varying"])
    assert np.mean(missed["far"]) / 3 < np.mean(told["far"]) < 3 * np.mean(missed["far"])


def test_distances_are_those_of_pixels_and_of_each_channel_in_its_own_unit():
    random = np.random.default_rng(5)
    image, fill = random.integers(0, 256, (2, 1, 12, 20, 3), dtype=np.uint8)
    image[0, :2, :2] = fill[0, :2, :2]
    subject = Subject.of_function(lambda x: x.mean(axis=(1, 2)), "image", background=fill)
    made = players_game(subject, {"image": image}, 0, 100)
    gaps = np.abs(image[0].astype(float) - fill[0]).sum(axis=2)
    np.testing.assert_allclose(made.distance, made.gather(gaps))
    assert made.varying.tolist() == (made.distance > 0).tolist() and not made.varying[0]
    series = random.standard_normal((1, 30, 2)).astype(np.float32)
    series[0, 4, 1] = 0
    for unit in (1, 1000):
        scaled = series * np.float32([1, unit])
        subject = Subject.of_function(lambda x: x.mean(axis=1), "series", background=np.zeros_like(series))
        made = players_game(subject, {"series": scaled}, 0, 100)
        np.testing.assert_allclose(made.distance, np.abs(series[0] / np.abs(series[0]).mean(axis=0)).ravel(), rtol=1e-5)
        assert not made.varying[9] and made.varying.sum() == 59


@pytest.mark.parametrize("method", SOLVERS)
def test_symmetric_players_share_and_dummies_get_nothing(method):
    def worth(z):  # 0 and 3 are alike, 2 does nothing, 5 adds its own
        return np.tanh(z[:, 0] + z[:, 3] + 0.5 * z[:, 1] * z[:, 4]) + 0.25 * z[:, 5]

    found = solve(method, game_of(worth, 6, (1, 6)), 300).values
    assert found[2] == pytest.approx(0, abs=1e-9) and found[5] == pytest.approx(0.25, abs=1e-9)
    if method != "partition":  # where 0 and 3 lie on different branches
        assert found[0] == pytest.approx(found[3], abs=1e-9)
    assert found.sum() == pytest.approx(float(np.diff(worth(np.array([[0.0] * 6, [1.0] * 6])))[0]), abs=1e-9)


@pytest.mark.parametrize("method", SOLVERS)
def test_players_that_equal_the_background_are_never_left_out(method):
    varying = np.array([True, False, True, True, False, True, True, False])
    worth = tangled(8, 3)
    game = game_of(lambda z: worth(np.where(varying, z, 0)), 8, (2, 4), varying)
    found = solve(method, game)
    masks = np.concatenate(game.asked)
    assert masks[masks.any(axis=1)][:, ~varying].all()
    assert (found.values[~varying] == 0).all() and np.abs(found.values[varying]).min() > 0
    assert len(np.unique(masks, axis=0)) == len(masks)  # and nothing is asked twice
    small = game_of(lambda z: worth(np.where(varying, z, 0)), 8, None, varying)
    if method != "partition":
        np.testing.assert_allclose(found.values, solve("exact", small).values, atol=1e-9)


@pytest.mark.parametrize("method", SOLVERS)
@pytest.mark.parametrize("count", [0, 1])
def test_with_at_most_one_player_that_varies_two_answers_are_enough(method, count):
    varying = np.arange(5) < count
    game = game_of(lambda z: 3 + 2 * z[:, 0] * (count > 0), 5, (1, 5), varying)
    found = solve(method, game)
    assert found.values.tolist() == [2 * count, 0, 0, 0, 0] and found.base == 3 and game.calls == 2
    assert found.complete and found.standard_error is None


@pytest.mark.parametrize(("method", "players"), [("exact", 12), ("permutation", 30), ("kernel", 30), ("partition", 30)])
def test_time_that_runs_out_gives_a_partial_answer_that_adds_up(method, players, watch):
    worth = smooth(players, 1)

    def slow(z):
        watch.now += 0.002 * len(z)
        return worth(z)

    whole = float(np.diff(worth(np.array([[0.0] * players, [1.0] * players])))[0])
    nothing = solve(method, game_of(slow, players, (5, players // 5)), 4000 if players > 12 else None, clock=Clock(0))
    np.testing.assert_allclose(nothing.values, whole / players)
    assert not nothing.complete and nothing.settings["evaluations"] == 2
    if method != "partition":
        assert np.isnan(nothing.standard_error).all()
    clock = Clock(0.4)
    some = solve(method, game_of(slow, players, (5, players // 5)), 40000 if players > 12 else None, clock=clock)
    assert not some.complete and 100 < some.settings["evaluations"] < 230  # 200 fit in
    assert some.values.sum() == pytest.approx(whole, abs=1e-9) and np.ptp(some.values) > 0
    assert some.standard_error is not None


def test_a_clock_with_time_to_spare_changes_nothing():
    for method in ("permutation", "kernel", "partition"):
        worth = smooth(20, 3)
        free = solve(method, game_of(worth, 20, (4, 5)), 600)
        timed = solve(method, game_of(worth, 20, (4, 5)), 600, clock=Clock(600))
        assert timed.complete and timed.settings["evaluations"] == free.settings["evaluations"]
        assert np.linalg.norm(timed.values - free.values) < 0.3 * np.linalg.norm(free.values)


def test_progress_is_told_up_to_the_end():
    for method in SOLVERS:
        told = []
        found = solve(
            method, game_of(smooth(10, 0), 10, (2, 5)), clock=Clock(progress=lambda *a, told=told: told.append(a))
        )
        assert len(told) >= 2 and told[-1] == (found.settings["evaluations"],) * 2
        assert all(done <= total for done, total in told) and told == sorted(told, key=lambda each: each[0])


def test_progress_is_a_line_on_the_standard_error(capsys):
    clock = Clock(progress=True, label="asking")
    clock._told -= 10  # as if ten seconds had passed
    clock.tell(3, 12_000)
    clock.tell(12_000, 12_000)
    clock.tell(12_000, 12_000)
    shown = capsys.readouterr().err
    assert shown.startswith("\rasking: 3 of 12,000 evaluations") and shown.count("\n") == 1 and shown.endswith("\n")


def test_calls_follow_the_speed_of_the_model(watch):
    assert Clock().portion(5000) == 5000
    clock, patient = Clock(10), Clock(10_000, progress=True)
    assert clock.portion(5000) == patient.portion(5000) == 1  # the speed is not known yet

    def play(masks):
        watch.now += 0.05

    for each in (clock, patient):
        each.measure(play)(np.zeros(10))  # 200 a second
    assert clock.portion(5000) in (197, 198) and patient.portion(5000) == 200  # a tenth of 9.9 seconds; one second
    assert clock.portion(7) == 7
    watch.now = 10.0
    assert clock.over and clock.portion(5000) == 1 and not patient.over
    with pytest.raises(ValueError, match="seconds must be 0 or more, or None for no limit, got seconds=-1"):
        Clock(-1)


def test_same_seed_same_values_and_numpys_own_generator_is_not_used():
    worth = smooth(20, 0)
    state = np.random.get_state()[1].copy()
    for method in ("permutation", "kernel", "partition"):
        one, two, other = (solve(method, game_of(worth, 20, (4, 5)), 200, seed).values for seed in (1, 1, 2))
        assert (one == two).all() and ((one == other).all() == (method == "partition"))
    assert (np.random.get_state()[1] == state).all()


def test_evaluations_keep_to_their_limit():
    for method in ("permutation", "kernel", "partition"):
        for limit in (2, 3, 7, 50, 333):
            game = game_of(smooth(40, 0), 40, (5, 8))
            found = solve(method, game, limit)
            assert game.calls == found.settings["evaluations"] <= limit and found.complete
            assert game.calls >= min(limit - 3, 0.7 * limit)


@pytest.mark.parametrize("method", SOLVERS)
def test_wrong_calls(method):
    with pytest.raises(ValueError, match=r"max_evals must be at least 2|exact needs 64 evaluations for 6 players"):
        solve(method, game_of(smooth(6, 0), 6, (1, 6)), 1)
    with pytest.raises(ValueError, match="the model answers NaN or infinity when something is left out"):
        solve(method, game_of(lambda z: np.where(z.sum(axis=1) == 3, np.nan, 1.0), 6, (1, 6)))


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (None, "partition needs players with an order"),
        ((2, 2), "a grid of 2 x 2, the game has 6 players"),
        (np.zeros((4, 4)), r"a tree of 6 players is a \(5, 4\) linkage, got \(4, 4\)"),
        (np.zeros((5, 4)), "must join every player and every branch but the last exactly once"),
    ],
)
def test_wrong_trees(tree, message):
    with pytest.raises(ValueError, match=message):
        solve("partition", game_of(smooth(6, 0), 6, tree))


def table_of(function, row, background):
    """The game of a table's row: columns that are left out take the values of each background row in turn."""
    players, rows = len(row), len(background)

    def play(masks):
        game.calls += rows * len(masks)
        return function(np.where(masks[:, None], row, background).reshape(-1, players)).reshape(-1, rows).mean(axis=1)

    def play_rows(masks, which):
        game.calls += len(masks)
        return function(np.where(masks, row, background[which]))

    varying = (row != background).any(axis=0)
    game = Game(players, None, play, lambda values: values, varying, {}, rows=rows, play_rows=play_rows)
    return game


def test_a_table_gives_weight_times_distance_from_the_mean_of_the_background():
    random = np.random.default_rng(0)
    weight, row, background = random.standard_normal(20), random.standard_normal(20), random.standard_normal((15, 20))
    background[:, 3] = row[3]
    found = solve("permutation", table_of(lambda x: 1 + x @ weight, row, background))
    np.testing.assert_allclose(found.values, weight * (row - background.mean(axis=0)), atol=1e-9)
    assert found.base == pytest.approx(1 + background.mean(axis=0) @ weight) and found.standard_error.max() < 1e-7


def test_answers_with_one_background_row_each_average_to_those_with_all():
    random = np.random.default_rng(3)
    background = {"numbers": random.standard_normal((6, 3)), "categories": random.choice(["red", "blue"], (6, 2))}

    def predict(raw):
        return raw["numbers"].sum(axis=1) * np.where(raw["categories"][:, 1] == "red", 2.0, 1.0)

    subject = Subject.of_function(predict, "table", background=background)
    row = {"numbers": random.standard_normal((1, 3)).astype(np.float32), "categories": np.array([["red", "red"]])}
    made = players_game(subject, row, 0, 100)
    masks = random.random((40, 5)) < 0.5
    each = made.play_rows(np.repeat(masks, 6, axis=0), np.tile(np.arange(6), 40)).reshape(40, 6)
    np.testing.assert_allclose(each.mean(axis=1), made.play(masks), atol=1e-6)
    assert made.rows == 6 and made.calls == 2 * 240 and np.ptp(each, axis=1).max() > 0.1
    single = {name: values[:1] for name, values in background.items()}
    assert players_game(Subject.of_function(predict, "table", background=single), row, 0, 100).play_rows is None


@pytest.mark.parametrize("evals", [25, 200])
def test_orders_with_a_background_row_each_know_how_near_they_are(evals):
    random = np.random.default_rng(1)
    first, second = random.standard_normal((10, 12)), random.standard_normal(12)
    row, background = random.standard_normal(10), random.standard_normal((25, 10))

    def function(x):
        return np.tanh(x @ first / 2) @ second

    truth = solve("exact", table_of(function, row, background)).values
    draws = []
    for seed in range(60):
        game = table_of(function, row, background)
        found = solve("permutation", game, evals, seed)
        assert found.values.sum() == pytest.approx(truth.sum(), abs=1e-9) and found.complete
        assert game.calls <= 25 * evals and found.settings["evaluations"] <= evals
        draws.append(found)
    missed = np.sqrt(np.mean([(draw.values - truth) ** 2 for draw in draws]))
    told = np.sqrt(np.mean([draw.standard_error**2 for draw in draws]))
    assert found.settings["orders"] == (25 if evals == 25 else 250)
    assert missed < 0.1 * np.abs(truth).max()
    assert (0.8 < told / missed < 1.25) if evals == 200 else (1 < told / missed < 4)  # one order a row: rows differ too


@pytest.mark.parametrize("seconds", [0, 0.02, 0.15, 0.5])
def test_a_table_whose_time_runs_out_adds_up(seconds, watch):
    random = np.random.default_rng(2)
    first, row, background = (
        random.standard_normal((20, 6)),
        random.standard_normal(20),
        random.standard_normal((30, 20)),
    )

    def function(x):
        watch.now += 1e-4 * len(x)
        return np.tanh(x @ first).sum(axis=1)

    game = table_of(function, row, background)
    found = solve("permutation", game, 4000, clock=Clock(seconds))
    whole = float(function(row[None])[0] - function(background).mean())
    assert not found.complete and found.values.sum() == pytest.approx(whole, abs=1e-9)
    assert game.calls <= 60 + 1.2 * seconds / 1e-4
    if seconds == 0:
        np.testing.assert_allclose(found.values, whole / 20)
    if seconds > 0.1:
        assert np.isfinite(found.standard_error).all() and found.standard_error.max() > 0


@pytest.mark.slow
def test_shap_finds_the_same_values():
    shap = pytest.importorskip("shap", reason="the reference; part of the explain extra")
    worth = smooth(8, 5)
    row, nothing = np.ones((1, 8)), np.zeros((1, 8))
    exact = solve("exact", game_of(worth, 8)).values
    theirs = shap.explainers.Exact(worth, shap.maskers.Independent(nothing))(row).values[0]
    np.testing.assert_allclose(exact, theirs, atol=1e-9)
    theirs = shap.KernelExplainer(worth, nothing).shap_values(row, nsamples=4000, l1_reg=False, silent=True)[0]
    np.testing.assert_allclose(solve("kernel", game_of(worth, 8)).values, theirs, atol=1e-6)
    permuted = shap.explainers.Permutation(worth, shap.maskers.Independent(nothing), seed=0)
    theirs = permuted(row, max_evals=17 * 2000, silent=True).values[0]
    ours = solve("permutation", game_of(worth, 8), 17 * 10)
    assert np.abs(ours.values - theirs).max() < 4 * ours.standard_error.max() + 0.01
    masker = shap.maskers.Partition(nothing, clustering=halves(2, 4))
    theirs = shap.explainers.Partition(worth, masker)(row, max_evals=4000, silent=True).values[0]
    np.testing.assert_allclose(solve("partition", game_of(worth, 8, (2, 4)), 4000).values, theirs, atol=1e-9)
