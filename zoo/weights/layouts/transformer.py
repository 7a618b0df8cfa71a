"""Files of the encoder-decoder transformer: this package's own; of its first one nobody publishes weights."""

from zoo.weights.layouts import Layout

HEAD = ()

LAYOUTS = (
    Layout(
        "this package's transformer",
        "transformer",
        lambda names: "decoder_block0_cross_query/kernel" in names and "decoder_bias/table" not in names,
        lambda name: name,
    ),
)
