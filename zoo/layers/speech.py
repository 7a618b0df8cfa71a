"""Reading the answer out of a speech recogniser that was trained with the CTC loss."""

import keras
from keras import layers, ops


@keras.saving.register_keras_serializable("zoo")
class CTCGreedyDecode(layers.Layer):
    """The most likely symbol of each step, repeats joined and blanks left out.

    Call it with logits or probabilities (batch, steps, symbols), and with the number of steps of each row (batch,)
    where they differ. It gives symbols (batch, steps) as int32, filled up with -1.

    Source: Graves et al. 2006, "Connectionist Temporal Classification", section 3.2, best path decoding.

    Args:
        blank: the symbol that means none.
    """

    def __init__(self, blank: int = 0, **kwargs) -> None:
        super().__init__(**kwargs)
        if blank < 0:
            raise ValueError(f"blank must be at least 0, got blank={blank}")
        self.blank = blank

    def call(self, scores, lengths=None):
        best = ops.cast(ops.argmax(scores, axis=-1), "int32")
        before = ops.pad(best[:, :-1], [[0, 0], [1, 0]], constant_values=-1)
        kept = ops.logical_and(ops.not_equal(best, self.blank), ops.not_equal(best, before))
        steps = ops.arange(ops.shape(scores)[1])
        if lengths is not None:
            kept = ops.logical_and(kept, steps < ops.cast(lengths, "int32")[:, None])
        order = ops.argsort(ops.where(kept, steps, steps + ops.shape(scores)[1]), axis=1)  # what is kept comes first
        count = ops.sum(ops.cast(kept, "int32"), axis=1, keepdims=True)
        return ops.where(steps < count, ops.take_along_axis(best, order, axis=1), -1)

    def compute_output_spec(self, scores, lengths=None):
        return keras.KerasTensor(scores.shape[:2], "int32")

    def get_config(self):
        return {**super().get_config(), "blank": self.blank}
