"""One training run of a model at hand: batches, compilation, callbacks, exact resumption."""

import keras
import numpy as np

from zoo import tasks
from zoo.training import adversarial, augment
from zoo.training.callbacks import GradientHealth, Keeper, NaNGuard, Progress
from zoo.training.optimisers import optimiser


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
        self.targets = data.signature.targets(data.train.y)
        self.class_weight = None
        if recipe.class_weights:
            if data.signature.task == "regression":
                raise ValueError("class_weights needs classes, the task is regression; leave it out")
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
        size = self.recipe.batch_size
        if self._order[0] != self.epoch:
            self._order = (self.epoch, np.random.default_rng([self.recipe.seed, self.epoch]).permutation(self.rows))
        rows = self._order[1][index * size : (index + 1) * size]
        signature = self.data.signature
        x = signature.inputs({name: values[rows] for name, values in self.data.train.x.items()})
        targets = self.targets[rows]
        y = self.task.encode(targets, signature.outputs)
        if self.recipe.augment:
            generator = np.random.default_rng([self.recipe.seed, self.epoch, index])
            x, y = augment.apply(self.recipe.augment, x, y, generator)
        y = self.method.targets("train", rows, x, y)
        return (x, y) if self.class_weight is None else (x, y, self.class_weight[targets])

    def at(self, epoch):
        """Turn to an epoch; Keras reads batches ahead and ends epochs of its own, so `fit` says which one runs."""
        self.epoch = epoch


def compile_for(model, recipe, task, steps, method=None):
    """Compile with a recipe's loss, optimiser and penalties."""
    method = method or Method()
    if recipe.l1 or recipe.l2:
        penalty = keras.regularizers.L1L2(recipe.l1, recipe.l2)
        for variable in model.trainable_variables:
            if variable.name == "kernel":
                variable.regularizer = penalty
    # XLA takes 7 to 18 s to compile a ResNet and gains nothing on a CPU, so it is left to GPUs
    on_tensorflow_cpu = keras.backend.backend() == "tensorflow" and not _has_gpu()
    model.compile(
        optimizer=optimiser(recipe, steps),
        loss=method.loss(task.loss(recipe.loss, recipe.label_smoothing)),
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
    if tuple(model.input_shape[1:]) != signature.preprocess.shape or model.output_shape[-1] != signature.outputs:
        raise ValueError(
            f"the model maps {tuple(model.input_shape[1:])} to {model.output_shape[-1]} outputs, data {data.name!r} has "
            f"{signature.preprocess.shape} and {signature.outputs}; build it with these"
        )
    method = method or Method()
    model = method.begin(model, data, recipe)
    if recipe.adversarial:
        model = adversarial.hardened(model, data, recipe)
    steps = Batches(data, recipe).steps
    compile_for(model, recipe, task, steps, method)

    x = signature.inputs(data.validation.x)
    targets = task.encode(signature.targets(data.validation.y), signature.outputs)
    targets = method.targets("validation", np.arange(len(x)), x, targets)
    validation = (x, targets)
    if recipe.averaging:
        save_every = 0  # Keras replaces the weights by their average when a pass ends, so an epoch cannot be split
    keeper = Keeper(folder, task.monitor, task.mode, recipe.patience, save_every)
    extra = list(callbacks)
    if recipe.schedule == "plateau":
        extra.append(keras.callbacks.ReduceLROnPlateau(monitor=task.monitor, mode=task.mode, factor=0.2, patience=3))
    if diagnose is not None:
        diagnose.append(GradientHealth(*(part[:64] for part in validation)))
        extra.extend(diagnose)
    keeper.siblings = tuple(extra)
    keeper.set_model(model)

    epoch, skip = 0, 0
    if resume:
        # Keras creates the metrics' variables with the first batch; they must be there to take their saved sums
        model.compute_metrics(None, targets[:1], np.zeros((1, *model.output_shape[1:]), np.float32))
        model.reset_metrics()
        epoch, skip = keeper.resume()
    shown = [] if quiet else [Progress(recipe.epochs, steps, epoch * steps + skip)]
    everything = [NaNGuard(), *extra, keeper, *shown]
    # a started epoch is finished on its own, since its first pass is shorter
    passes = [(epoch, epoch + 1, skip)] if skip else []
    passes.append((epoch + len(passes), recipe.epochs, 0))
    try:
        for first, last, skipped in passes:
            if first < last and not (first > epoch and model.stop_training):
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
                    validation_batch_size=256,
                    callbacks=[turn, *everything],
                    shuffle=False,
                    verbose=0,
                )
    finally:
        for bar in shown:
            bar.close()
    if keep == "best" and not recipe.averaging:  # averaged weights are set at the end of the run and are the result
        keeper.restore_best()
    method.finish()
    return keeper.history
