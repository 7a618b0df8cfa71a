"""Training: `train` from a name to a run folder, `tune` a run further, `fit` a model at hand, `load` a folder."""

from zoo.training.finder import find_learning_rate
from zoo.training.fit import fit
from zoo.training.run import Run, as_run, check_folder, check_trained, load, load_data, train, tune

__all__ = [
    "Run",
    "as_run",
    "check_folder",
    "check_trained",
    "find_learning_rate",
    "fit",
    "load",
    "load_data",
    "train",
    "tune",
]
