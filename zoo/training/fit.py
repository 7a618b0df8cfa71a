"""One training run of a model at hand: batches, compilation, callbacks, exact resumption."""

import contextlib
import math
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import keras
import numpy as np

from zoo import data as datasets
from zoo import tasks
from zoo.data.lazy import Pictures
from zoo.machine import cores
from zoo.recipes import MIXING
from zoo.training import adversarial, augment, augment_pixels
from zoo.training.callbacks import GradientHealth, Keeper, NaNGuard, Progress, position
from zoo.training.optimisers import optimiser
from zoo.training.transfer import Freezing

AHEAD = min(8, cores())  # training batches that are made while one trains
JUDGED = 256  # validation rows in a batch at most


class Method:
    """How a network learns; this one plainly, by its task's loss on the true targets.

    `zoo.compress` has others: from a teacher, or under quantization. A method trains a model of its own that shares
    the network's weights, or hands them back in `finish`.
    """

    def check(self, network, data, recipe):
        """Refuse what cannot work, before anything is written.

        Args:
            network: Keras model for the data's task.
            data: `zoo.data.Data`.
            recipe: `zoo.recipes.Recipe`.

        Raises:
            ValueError: this network cannot learn this way from this data.
        """

    def begin(self, network, data, recipe):
        """The model to train in place of the network, with one output, `(batch, values)`."""
        return network

    def targets(self, split, rows, x, y):
        """What the loss compares with.

        Args:
            split: "train" or "validation".
            rows: indices of the rows in the split.
            x: model input, augmented in training.
            y: the task's encoded targets, `(batch, outputs)`.
        """
        return y

    def loss(self, loss):
        """The loss on `targets`, given the task's own."""
        return loss

    def metrics(self, metrics):
        """Metrics on `targets`, given the task's own."""
        return metrics

    def finish(self):
        """Give the network what its stand-in has learnt."""


class Batches(keras.utils.PyDataset):
    """Training batches whose order and augmentation are a function of (seed, epoch, batch) alone.

    Where pictures are augmented or are still in their files, the next batches are made by other threads while one trains.

    Args:
        data: `zoo.data.Data`; its training split is preprocessed batch by batch.
        recipe: `zoo.recipes.Recipe`.
        epoch: epoch of the first pass.
        skip: batches of that pass that were done before.
        method: who completes the targets.
    """

    def __init__(self, data, recipe, epoch=0, skip=0, method=None):
        super().__init__()
        self.data, self.recipe, self.epoch, self.skip = data, recipe, epoch, skip
        self.method = method or Method()
        self.task = tasks.get(data.signature.task)
        self.rows = len(data.train.y)
        self._order = (None, None)  # epoch and its permutation
        self._coming = {}  # batches in the making, by epoch and place
        self._makers = self.failure = None
        if "image" in data.train.x and (recipe.augment or _in_files(data.train)):
            self._makers = ThreadPoolExecutor(AHEAD, thread_name_prefix="batches")
        self._own = data.signature.preprocess
        self._pixels = [entry for entry in recipe.augment if entry.partition(":")[0] in augment_pixels.BY_NAME]
        if self._pixels and not (data.signature.preprocess.kind == "image" and data.signature.one_label):
            raise ValueError(
                f"augment {self._pixels[0]!r} is for images of one class each, the task is {data.signature.task}; leave it out"
            )
        if recipe.augment:  # its strengths count standard deviations of the training images, and its 0 is their mean
            self._own = datasets.scaled(data, "fitted").signature.preprocess
        self.targets = data.signature.targets(data.train.y)
        self.class_weight = None
        if recipe.class_weights:
            if not data.signature.one_label:
                raise ValueError(
                    f"class_weights needs one class for each row, the task is {data.signature.task}; leave it out"
                )
            counts = np.bincount(self.targets, minlength=data.signature.outputs)
            self.class_weight = (self.rows / np.maximum(counts, 1) / len(counts)).astype(np.float32)

    @property
    def steps(self):
        """Batches of a whole epoch."""
        return -(-self.rows // self.recipe.batch_size)

    def __len__(self):
        return self.steps - self.skip

    def __getitem__(self, index):
        index += self.skip
        if self._order[0] != self.epoch:
            generator = np.random.default_rng([self.recipe.seed, self.epoch])
            self._order = (self.epoch, self.task.order(self.targets, generator))
            self._coming.clear()
        with kept(self):
            rows, x, y = self._next(index) if self._makers else self._made(self.epoch, index, self._rows(index))
        y = self.method.targets("train", rows, x, y)
        return (x, y) if self.class_weight is None else (x, y, self.class_weight[self.targets[rows]])

    def _rows(self, index):
        size = self.recipe.batch_size
        return self._order[1][index * size : (index + 1) * size]

    def _next(self, index):
        """A batch, after those that follow it have been ordered."""
        for place in range(index, min(index + 1 + AHEAD, self.steps)):
            if place not in self._coming:
                self._coming[place] = self._makers.submit(self._made, self.epoch, place, self._rows(place))
        for place in [place for place in self._coming if place < index]:
            del self._coming[place]
        return self._coming.pop(index).result()

    def _made(self, epoch, index, rows):
        """Rows, inputs and encoded targets of a batch."""
        signature = self.data.signature
        raw = {name: values[rows] for name, values in self.data.train.x.items()}
        generator = np.random.default_rng([self.recipe.seed, epoch, index])
        if (drawn := self.task.drawn(raw, signature, generator)) is not None:
            return rows, *drawn
        if self._pixels:
            raw |= {"image": augment_pixels.apply(self._pixels, raw["image"], generator)}
        x = self._own(raw)
        y = self.task.encode(self.targets[rows], signature.outputs)
        rest = [entry for entry in self.recipe.augment if entry not in self._pixels]
        if epoch >= self.recipe.epochs - self.recipe.unmixed:
            rest = [entry for entry in rest if entry.partition(":")[0] not in MIXING]
        if rest:
            x, y = augment.apply(rest, x, y, generator)
        if self._own != signature.preprocess:
            x = signature.inputs({"image": self._own.pixels(x)})
        return rows, x, y

    def at(self, epoch):
        """Turn to an epoch; Keras reads batches ahead and ends epochs of its own, so `fit` says which one runs."""
        self.epoch = epoch


@contextlib.contextmanager
def kept(batches):
    """Keep what goes wrong as `batches.failure`: TensorFlow puts an error of its own in the place of a reader's."""
    try:
        yield
    except ValueError as error:
        batches.failure = error
        raise


class Held(keras.utils.PyDataset):
    """Validation batches of pictures that are still in their files.

    Args:
        data: `zoo.data.Data`.
        method: who completes the targets.
        size: rows of a batch.
    """

    def __init__(self, data, method, size):
        super().__init__()
        self.data, self.method, self.size, self.failure = data, method, size, None
        self.targets = data.signature.targets(data.validation.y)

    def __len__(self):
        return math.ceil(len(self.targets) / self.size)

    def __getitem__(self, index):
        with kept(self):
            return self.of(np.arange(index * self.size, min(len(self.targets), (index + 1) * self.size)))

    def of(self, rows):
        """Inputs and targets of some rows."""
        signature = self.data.signature
        x = signature.inputs({name: values[rows] for name, values in self.data.validation.x.items()})
        y = tasks.get(signature.task).encode(self.targets[rows], signature.outputs)
        return x, self.method.targets("validation", rows, x, y)


def _in_files(split):
    return any(isinstance(values, Pictures) for values in split.x.values())


def compile_for(model, recipe, task, steps, method=None, freezing=None, start=0):
    """Compile with a recipe's loss, optimiser and penalties.

    Args:
        model: Keras model.
        recipe: `zoo.recipes.Recipe`.
        task: from `zoo.tasks`.
        steps: batches of an epoch.
        method: `Method` by which it learns.
        freezing: `zoo.training.transfer.Freezing` that tells the rate of each variable, None for the same rate.
        start: epoch from which the optimiser counts.
    """
    method = method or Method()
    if recipe.l1 or recipe.l2:
        penalty = keras.regularizers.L1L2(recipe.l1, recipe.l2)
        for variable in model.trainable_variables:
            if variable.name == "kernel":
                variable.regularizer = penalty
    # XLA takes 7 to 18 s to compile a ResNet and gains nothing on a CPU, so it is left to GPUs
    on_tensorflow_cpu = keras.backend.backend() == "tensorflow" and not _has_gpu()
    factors = freezing.factors(model.trainable_variables) if freezing else ()
    model.compile(
        optimizer=optimiser(recipe, steps, start * steps, tuple(factors)),
        loss=method.loss(task.loss_for(model, recipe.loss, recipe.label_smoothing)),
        metrics=method.metrics(task.metrics()),
        jit_compile=False if on_tensorflow_cpu else "auto",
    )
    model.optimizer.build(model.trainable_variables)


def _has_gpu():
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


def fit(
    model,
    data,
    recipe,
    *,
    folder=None,
    resume=False,
    callbacks=(),
    quiet=False,
    save_every=0,
    diagnose=None,
    keep="best",
    method=None,
):
    """Train a model that is at hand; it ends with the weights of its best epoch.

    Args:
        model: Keras model for the data's task, changed in place.
        data: `zoo.data.Data`.
        recipe: `zoo.recipes.Recipe`.
        folder: where state and history are kept, None to keep nothing.
        resume: go on from `folder/state.npz`.
        callbacks: further Keras callbacks.
        quiet: no progress bar.
        save_every: batches between two saves inside an epoch, 0 for epoch ends only.
        diagnose: list that receives a `GradientHealth` measured after each epoch, None to measure nothing.
        keep: whose weights the model ends with, the "best" epoch's or the "last" one's.
        method: `Method` by which it learns, plainly from the true targets if None.

    Returns:
        Rows of the history, one dictionary per epoch.

    Raises:
        FloatingPointError: the loss is not a number any more.
        ValueError: model, data or recipe do not fit together.
    """
    signature = data.signature
    task = tasks.get(signature.task)
    tasks.check_model(model, signature, f"build it for the data {data.name!r}")
    method = method or Method()
    network, model = model, task.learner(method.begin(model, data, recipe), data, recipe)
    freezing = Freezing(network, recipe, model)
    if recipe.adversarial:
        model = adversarial.hardened(model, data, recipe)
    batches = Batches(data, recipe)
    steps = batches.steps
    epoch, skip = position(folder) if resume else (0, 0)
    compile_for(model, recipe, task, steps, method, freezing, freezing.begin(epoch))

    held = Held(data, method, tasks.together(network, JUDGED))
    if _in_files(data.validation):
        validation, few = held, held.of(np.arange(min(64, len(data.validation))))
    else:
        validation = held.of(np.arange(len(data.validation)))
        few = keras.tree.map_structure(lambda part: part[:64], list(validation))
    if recipe.averaging:
        save_every = 0  # Keras replaces the weights by their average when a pass ends, so an epoch cannot be split
    keeper = Keeper(folder, task.monitor, task.mode, recipe.patience, save_every)
    extra = list(callbacks)
    if recipe.schedule == "plateau":
        extra.append(keras.callbacks.ReduceLROnPlateau(monitor=task.monitor, mode=task.mode, factor=0.2, patience=3))
    if diagnose is not None:
        diagnose.append(GradientHealth(*few))
        extra.extend(diagnose)
    keeper.siblings = tuple(extra)
    keeper.set_model(model)

    if resume:
        # Keras creates the metrics' variables with the first batch; they must be there to take their saved sums
        model.compute_metrics(None, few[1][:1], np.zeros((1, *model.output_shape[1:]), np.float32))
        model.reset_metrics()
        keeper.resume(fresh_optimizer=not skip and epoch in freezing.starts)
    shown = [] if quiet else [Progress(recipe.epochs, steps, epoch * steps + skip)]
    everything = [NaNGuard(), *extra, keeper, *shown]
    # a started epoch is finished on its own, since its first pass is shorter
    passes = [(epoch, epoch + 1, skip)] if skip else []
    whole = epoch + len(passes)
    cuts = [whole, *(start for start in freezing.starts if start > whole), recipe.epochs]
    passes.extend((first, last, 0) for first, last in pairwise(cuts))
    try:
        for first, last, skipped in passes:
            if first < last and not (first > epoch and model.stop_training):
                if first > epoch and first in freezing.starts:
                    compile_for(model, recipe, task, steps, method, freezing, freezing.begin(first))
                batches = Batches(data, recipe, first, skipped, method)
                for callback in extra:
                    if hasattr(callback, "place"):  # a pass may be the rest of an epoch, or all but a resumed one
                        callback.place(recipe.epochs, steps, first, skipped)
                turn = keras.callbacks.LambdaCallback(
                    on_epoch_begin=lambda epoch, _, batches=batches: batches.at(epoch)
                )
                model.fit(
                    batches,
                    initial_epoch=first,
                    epochs=last,
                    validation_data=validation,
                    validation_batch_size=None if validation is held else held.size,
                    callbacks=[turn, *everything],
                    shuffle=False,
                    verbose=0,
                )
    except Exception:  # a backend hides an error in reading rows behind one of its own
        for source in (held, batches):
            if source.failure is not None:
                raise source.failure from None
        raise
    finally:
        freezing.end()
        for bar in shown:
            bar.close()
    if keep == "best" and not recipe.averaging:  # averaged weights are set at the end of the run and are the result
        keeper.restore_best()
    method.finish()
    return keeper.history
