"""Callbacks of a run: what is kept, what is shown, and when to stop."""

import csv
import json
import logging
import os
from pathlib import Path

import keras
import numpy as np

from zoo.training.gradients import gradients

log = logging.getLogger("zoo.training")

COUNTERS = ("wait", "best", "cooldown_counter", "reached", "chosen_at")  # attributes of callbacks that continue


class Keeper(keras.callbacks.Callback):
    """Keeps the best weights, stops when patience runs out, and can continue a killed run exactly.

    `state.npz` holds every variable (weights, optimiser moments, seed generators, metric sums) with the position in
    the run; it is written to a temporary file, flushed to disk and renamed, so it is whole at any moment. The order
    and augmentation of the rows depend on seed, epoch and batch alone (`zoo.training.fit.Batches`), so a run that
    goes on from it computes the same losses as one that was never stopped.

    Args:
        folder: where `state.npz`, `best.npz` and `history.csv` are kept, or None to keep the best in memory only.
        monitor: metric to follow, such as "val_accuracy".
        mode: "max" or "min".
        patience: epochs without improvement before the run stops, 0 for never.
        every: batches between two saves inside an epoch, 0 for epoch ends only.
    """

    def __init__(self, folder, monitor, mode, patience=0, every=0):
        super().__init__()
        self.folder = Path(folder) if folder else None
        self.monitor, self.mode, self.patience, self.every = monitor, mode, patience, every
        self.best, self.best_epoch, self.history = None, -1, []
        self.skip = 0  # batches of the running epoch that were done before
        self._best_weights, self._pending_metrics = None, None

    def _variables(self):
        model = self.model
        groups = {"model": model.variables, "optimizer": model.optimizer.variables, "metric": model.metrics_variables}
        return {f"{group}/{i}": v for group, variables in groups.items() for i, v in enumerate(variables)}

    def _sync(self):
        if keras.backend.backend() == "jax" and getattr(self.model, "_jax_state", None):
            self.model.jax_state_sync()

    def _save(self, epoch, batch):
        if not self.folder:
            return
        self._sync()
        position = {
            "epoch": epoch,
            "batch": batch,
            "best": self.best,
            "best_epoch": self.best_epoch,
            "history": self.history,
        }
        position["callbacks"] = {
            type(c).__name__: {k: float(v) for k, v in vars(c).items() if k in COUNTERS} for c in self.siblings
        }
        arrays = {key: np.asarray(v) for key, v in self._variables().items()}
        _write(self.folder / "state.npz", arrays | {"position": np.asarray(json.dumps(position))})

    siblings: tuple = ()  # other callbacks whose counters continue too

    def resume(self, fresh_optimizer=False):
        """Load `state.npz` into the compiled, built model.

        Args:
            fresh_optimizer: the optimiser begins with this epoch, whatever the one before had reached.

        Raises:
            ValueError: the state belongs to another model or recipe.
        """
        path = self.folder / "state.npz"
        with np.load(path, allow_pickle=False) as saved:
            reached = json.loads(str(saved["position"]))
            variables = self._variables()
            if fresh_optimizer:
                variables = {key: v for key, v in variables.items() if not key.startswith("optimizer")}
            missing = [key for key, v in variables.items() if key not in saved or saved[key].shape != tuple(v.shape)]
            if missing and not all(key.startswith("metric") for key in missing):
                raise ValueError(
                    f"{path} does not fit this model ({len(missing)} variables differ); resume with the same arguments"
                )
            for key, variable in variables.items():
                if not key.startswith("metric"):
                    variable.assign(saved[key])
            self._pending_metrics = {key: saved[key] for key in saved.files if key.startswith("metric")}
        self.best, self.best_epoch, self.history = reached["best"], reached["best_epoch"], reached["history"]
        for callback in self.siblings:
            vars(callback).update(reached["callbacks"].get(type(callback).__name__, {}))
        self.skip = reached["batch"]

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        if self._pending_metrics and self.skip:
            for key, variable in self._variables().items():
                if key in self._pending_metrics:
                    variable.assign(self._pending_metrics[key])
        self._pending_metrics = None

    def on_train_batch_end(self, batch, logs=None):
        if self.every and (batch + 1) % self.every == 0:
            self._save(self.epoch, self.skip + batch + 1)

    def on_epoch_end(self, epoch, logs=None):
        self._sync()
        self.skip = 0
        self.history.append({"epoch": epoch, **{k: float(v) for k, v in (logs or {}).items()}})
        score = (logs or {}).get(self.monitor)
        if score is not None and np.isfinite(score):
            ahead = 0.0 if self.best is None else (score - self.best) * (1 if self.mode == "max" else -1)
            if self.best is None or ahead > 0:
                self.best, self.best_epoch = float(score), epoch
            if ahead >= 0:  # of equal epochs the last, which has seen more
                self._best_weights = self.model.get_weights()
                if self.folder:
                    _write(self.folder / "best.npz", {str(i): w for i, w in enumerate(self._best_weights)})
        if self.folder:
            with (self.folder / "history.csv").open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(self.history[-1]))
                writer.writeheader()
                writer.writerows(self.history)
        if self.patience and epoch - self.best_epoch >= self.patience:
            self.model.stop_training = True
        self._save(epoch + 1, 0)

    def restore_best(self):
        """Put the best epoch's weights back into the model, if the run has improved at all."""
        if self._best_weights is None and self.folder and (self.folder / "best.npz").exists():
            with np.load(self.folder / "best.npz", allow_pickle=False) as saved:
                self._best_weights = [saved[str(i)] for i in range(len(saved.files))]
        if self._best_weights is not None:
            self.model.set_weights(self._best_weights)


def position(folder):
    """Epoch and batch at which a killed run goes on."""
    with np.load(Path(folder) / "state.npz", allow_pickle=False) as saved:
        found = json.loads(str(saved["position"]))
    return found["epoch"], found["batch"]


def _write(path, arrays):
    """Write an .npz so that `path` is always a whole file."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        np.savez(file, **arrays)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


class NaNGuard(keras.callbacks.Callback):
    """Ends the run at the first loss that is not a number, with advice, before a checkpoint holds it."""

    def on_train_batch_end(self, batch, logs=None):
        loss = (logs or {}).get("loss")
        if loss is not None and not np.isfinite(loss):
            raise FloatingPointError(
                f"the loss became {loss} in batch {batch}; lower learning_rate, set clip_norm=1.0 or add warmup=0.05 "
                "(if an epoch was finished, its state is kept and `resume` goes on from it)"
            )


class GradientHealth(keras.callbacks.Callback):
    """Measures after each epoch, on one fixed batch, how the gradient flows and which units are dead.

    Each row of `rows` has `epoch`, `weight` (path), `norm` (of its gradient), `ratio` (gradient norm over weight
    norm); `dead` counts units of ReLU layers that are zero for the whole batch. Warnings name the first weight
    whose gradient vanishes (ratio below 1e-7) or explodes (norm above 1e3).

    Args:
        x: model input, `(batch, ...)`.
        y: encoded targets.
    """

    def __init__(self, x, y):
        super().__init__()
        self.x, self.y, self.rows, self.dead = x, y, [], {}
        self._probe = None

    def on_epoch_end(self, epoch, logs=None):
        _, slopes = gradients(self.model, None, self.x, self.y, training=True)
        for variable, slope in zip(self.model.trainable_variables, slopes, strict=True):
            norm, size = float(np.linalg.norm(slope)), float(np.linalg.norm(np.asarray(variable)))
            self.rows.append({"epoch": epoch, "weight": variable.path, "norm": norm, "ratio": norm / (size or 1.0)})
        now = [row for row in self.rows if row["epoch"] == epoch and "kernel" in row["weight"]]
        for row in now:
            if row["norm"] > 1e3:
                log.warning(
                    "epoch %d: the gradient of %s explodes (norm %.3g); set clip_norm",
                    epoch + 1,
                    row["weight"],
                    row["norm"],
                )
                break
            if row["ratio"] < 1e-7:
                log.warning(
                    "epoch %d: the gradient of %s vanishes (%.1e of the weight)", epoch + 1, row["weight"], row["ratio"]
                )
                break
        self._count_dead()

    def _count_dead(self):
        relus = [layer for layer in self.model.layers if isinstance(layer, keras.layers.ReLU)]
        if not relus:
            return
        self._probe = self._probe or keras.Model(self.model.input, [layer.output for layer in relus])
        for layer, out in zip(relus, keras.tree.flatten(self._probe(self.x, training=False)), strict=True):
            units = keras.ops.convert_to_numpy(out).reshape(-1, out.shape[-1])
            self.dead[layer.name] = float(np.mean(np.all(units <= 0, axis=0)))


class Progress(keras.callbacks.Callback):
    """A progress bar over the whole run with the time left; one line per epoch where there is no terminal."""

    def __init__(self, epochs, steps, done=0):
        super().__init__()
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.console = Console(stderr=True)
        self.epochs, self.steps, self.done = epochs, steps, done
        columns = [
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        ]
        self.bar = Progress(*columns, console=self.console, transient=True) if self.console.is_terminal else None

    def on_train_begin(self, logs=None):
        if self.bar and not self.bar.live.is_started:
            self.task = self.bar.add_task("training", total=self.epochs * self.steps, completed=self.done)
            self.bar.start()

    def on_train_batch_end(self, batch, logs=None):
        if self.bar:
            self.bar.advance(self.task)

    def on_epoch_end(self, epoch, logs=None):
        figures = "  ".join(f"{key} {value:.4f}" for key, value in (logs or {}).items() if key != "learning_rate")
        self.console.print(f"epoch {epoch + 1:>3}/{self.epochs}  {figures}", highlight=False)

    def close(self):
        """Take the bar off the screen."""
        if self.bar:
            self.bar.stop()
