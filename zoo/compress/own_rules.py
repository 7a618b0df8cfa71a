"""How the layers of `zoo.layers` pass channels on: one rule per kind."""

from zoo.compress.identities import follows
from zoo.layers.attention import Attention
from zoo.layers.capsules import ClassCapsules, Squash
from zoo.layers.pooling import GridAverage
from zoo.layers.positions import LearnedPositions, RelativeBias, Rotary, WavePositions
from zoo.layers.regions import PyramidAlign
from zoo.layers.speech import BlankPadding, ClearPadding
from zoo.layers.tokens import ClassToken, FirstToken, Positions, Present, Segments


@follows(Positions)
def positions(walk, layer, x):
    walk.weigh(layer.grid, None, None, x.axes[-1])
    return x.axes


@follows(ClassToken)
def class_token(walk, layer, x):
    walk.fix(x.axes[1])
    walk.weigh(layer.token, x.axes[-1])
    walk.weigh(layer.position, x.axes[-1])
    return (x.axes[0], None, x.axes[-1])


@follows(GridAverage)
def grid_average(walk, layer, x):
    walk.fix(*x.axes[1:-1])
    return (x.axes[0], None, None, x.axes[-1])


@follows(Squash)
def squash(walk, layer, x):
    walk.fix(x.axes[-1])
    return x.axes


@follows(ClassCapsules)
def class_capsules(walk, layer, x):
    walk.fix(x.axes[-1])
    walk.weigh(layer.kernel, x.axes[1], None, None, None, reads=(0,))
    return (None, None)


@follows(PyramidAlign)
def pyramid_align(walk, layer, maps, boxes):
    walk.fix(boxes)
    channels = maps[0].axes[-1]
    for x in maps:
        walk.fix(*x.axes[1:-1])
        channels = walk.unite(channels, x.axes[-1]) if channels is not None else walk.fix(x.axes[-1])
    return (None, None, None, None, channels)


@follows(ClearPadding)
def clear_padding(walk, layer, x, mask):
    walk.fix(x.axes[1])
    return x.axes


@follows(BlankPadding)
def blank_padding(walk, layer, logits, mask):
    walk.fix(*logits.axes[1:])
    return logits.axes


@follows(Present, Segments)
def of_each_token(walk, layer, tokens):
    walk.fix(tokens)
    return (None, None)


@follows(FirstToken)
def first_token(walk, layer, x):
    walk.fix(x.axes[1])
    return (x.axes[0], x.axes[2])


@follows(LearnedPositions)
def learned_positions(walk, layer, x, start=0):
    walk.fix(x.axes[1])
    walk.weigh(layer.table, None, x.axes[-1])
    return x.axes


@follows(WavePositions)
def wave_positions(walk, layer, x, start=0):
    walk.fix(x)  # what is added depends on the number of the channel
    return x.axes


@follows(Rotary)
def rotary(walk, layer, x, start=0):
    walk.fix(x.axes[1])
    heads = _whole_heads(walk, layer, x.axes[-1])
    if heads is not None:
        walk.resize(layer, heads=heads)
    return x.axes


@follows(RelativeBias)
def relative_bias(walk, layer, query, key):
    walk.fix(query.axes[1], key.axes[1])
    heads = walk.make(layer, layer.heads, "heads")
    walk.weigh(layer.table, None, heads)
    walk.resize(layer, heads=heads)
    return (None, heads, None, None)


@follows(Attention)
def attention(walk, layer, query, key, value, present=None, bias=None, **options):
    """Heads are removed whole, from queries, keys and values at once; every query may see every key, so places stay."""
    for x in (query, key, value):
        walk.fix(*x.axes[:-1])
    row = query.axes[-1]
    for x in (key, value):
        row = walk.unite(row, x.axes[-1]) if row is not None else walk.fix(x.axes[-1])
    heads = _whole_heads(walk, layer, row)
    if heads is None:
        walk.fix(query, key, value, *(() if bias is None else (bias,)))
    else:
        walk.resize(layer, heads=heads)
        if bias is not None:
            walk.unite(heads, bias.axes[1])
    found = (None, None, value.axes[-1])
    scores = [(None, heads, None, None) for _ in walk.shapes[1:]]
    return [found, *scores]


def _whole_heads(walk, layer, row):
    """One identity for each head of a width, which stands for all of its channels; None where they stay."""
    if row is None:
        return None
    parts = row.reshape(layer.heads, -1)
    for other in parts.T[1:]:
        walk.unite(parts[:, 0], other)
    return parts[:, 0]
