"""What all solvers of a game share: the result, and a game among players that vary, with counted evaluations."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from zoo.explain.clock import Clock
from zoo.explain.players import Game


@dataclass(frozen=True)
class Solved:
    """The contribution of each player.

    Attributes:
        values: (players,) float64.
        base: answer with every player left out.
        settings: figures it was found with.
        standard_error: of each value (players,), NaN where too little was evaluated to know; None where the values are
            exact or the method has no such error.
        complete: False when the time ended before the planned evaluations were done.
    """

    values: np.ndarray
    base: float
    settings: dict[str, Any]
    standard_error: np.ndarray | None = None
    complete: bool = True


class Asked:
    """A game among the players that vary: the others have the same value in every coalition and are never evaluated.

    Attributes:
        players: number of those that vary.
        base, full: answers without any player and with all.
        rows: background rows behind each answer.
    """

    def __init__(self, game: Game, max_evals: int | None, clock: Clock):
        """Ask for the empty and the full coalition.

        Raises:
            ValueError: `max_evals` is below 2, or the model answers NaN or infinity.
        """
        if max_evals is not None and max_evals < 2:
            raise ValueError(f"max_evals must be at least 2, the answers with all and with none, got {max_evals!r}")
        self._game = game
        self._clock = clock
        self._play = clock.measure(game.play)
        self._play_rows = game.play_rows and clock.measure(game.play_rows)
        self.rows = game.rows
        self.varying = np.flatnonzero(game.varying)
        self.players = len(self.varying)
        self._row_answers = 0
        ends = np.array([[False], [True]]).repeat(game.players, axis=1)
        self.base, self.full = self._answers(ends).tolist()

    @property
    def evaluations(self) -> int:
        """Coalitions answered so far; answers with one background row alone count for their share."""
        return -(-self._row_answers // self.rows)

    @property
    def by_rows(self) -> bool:
        """Whether coalitions can be answered with one background row alone."""
        return self._play_rows is not None

    @property
    def difference(self) -> float:
        """What all players together add to the base."""
        return self.full - self.base

    def ask(self, masks: np.ndarray, planned: int) -> np.ndarray:
        """Answers to coalitions of the varying players.

        Args:
            masks: bool (coalitions, players that vary).
            planned: evaluations in all, for the line of progress.
        """
        answers = self._answers(self._whole(masks))
        self._clock.tell(min(self.evaluations, planned), planned)
        return answers

    def ask_rows(self, masks: np.ndarray, rows: np.ndarray, planned: int) -> np.ndarray:
        """As `ask`, each coalition with one background row alone, given by its number (coalitions,)."""
        answers = self._checked(self._play_rows(self._whole(masks), rows))
        self._row_answers += len(masks)
        self._clock.tell(min(self.evaluations, planned), planned)
        return answers

    def _whole(self, masks: np.ndarray) -> np.ndarray:
        """Coalitions of all players."""
        if self.players == self._game.players:
            return masks
        whole = np.ones((len(masks), self._game.players), bool)
        whole[:, self.varying] = masks
        return whole

    def _answers(self, masks: np.ndarray) -> np.ndarray:
        self._row_answers += len(masks) * self.rows
        return self._checked(self._play(masks))

    def _checked(self, answers: np.ndarray) -> np.ndarray:
        answers = np.asarray(answers, np.float64)
        if not np.isfinite(answers).all():
            raise ValueError(
                "the model answers NaN or infinity when something is left out; give a background that it can judge"
            )
        return answers

    def solved(
        self, values: np.ndarray, error: np.ndarray | None = None, complete: bool = True, **settings: Any
    ) -> Solved:
        """The result, with the contributions (players that vary,) put into their places among all players."""
        everyone = np.zeros(self._game.players)
        everyone[self.varying] = values
        if error is not None:
            spread = np.zeros(self._game.players)
            spread[self.varying] = error
            error = spread
        self._clock.tell(self.evaluations, self.evaluations)
        settings = {**self._game.settings, "evaluations": self.evaluations, **settings}
        return Solved(everyone, self.base, settings, error, complete)

    def trivial(self) -> Solved | None:
        """The result where at most one player varies: all of the difference is its own."""
        return self.solved(np.full(self.players, self.difference)) if self.players <= 1 else None
