"""How the layers of `zoo.layers` pass channels on: one rule per kind."""

from zoo.compress.identities import follows
from zoo.layers.capsules import ClassCapsules, Squash
from zoo.layers.pooling import GridAverage
from zoo.layers.regions import PyramidAlign
from zoo.layers.tokens import ClassToken, Positions


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
