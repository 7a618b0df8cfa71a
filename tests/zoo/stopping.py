"""A callback that kills a run."""

import keras


class Stop(keras.callbacks.Callback):
    """Kills a run, as Ctrl-C would: after so many batches, or as an epoch begins.

    Args:
        batches: trained by then.
        epoch: its index, from 0.
    """

    def __init__(self, batches=None, *, epoch=None):
        super().__init__()
        self.left, self.epoch = batches, epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt

    def on_train_batch_end(self, batch, logs=None):
        if self.left is not None:
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt
