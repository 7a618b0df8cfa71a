"""Faster R-CNN: a network proposes regions where there may be something, a second one says what each of them is.

Ren, He, Girshick & Sun, "Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks", NeurIPS 2015
(arXiv:1506.01497), on a feature pyramid (Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017,
arXiv:1612.03144), with features cut out by RoIAlign (He et al. 2017, arXiv:1703.06870), as torchvision has them all in
`fasterrcnn_resnet50_fpn`. Departures: the image has a fixed size, and the best thousand pairs of a region and a class
leave the model, for non-maximum suppression behind it, while torchvision keeps all pairs above a score.
"""

import math

import keras
from keras import initializers, layers, ops

from zoo.layers.matching import NOTHING, UNUSED, box_loss, matched, mean_of, picked, sampled
from zoo.layers.regions import Proposals, PyramidAlign, RankBoxes, moves
from zoo.registry import Tensor, get, register

ANCHORS_LEARNED, ANCHORS_TRUE = 256, 0.5  # an image's anchors that the first stage learns from, and share of true ones
REGIONS_LEARNED, REGIONS_TRUE = 512, 0.25  # the same for the second stage; both as in torchvision


@keras.saving.register_keras_serializable("zoo")
class TwoStages(keras.Model):
    """A functional model that trains its first stage on anchors and its second on what the first proposes.

    Targets are (batch, things, 5): left, top, right, bottom in pixels and the class, -1 for what is no box. While it is
    training, the model gives what both stages need in place of its answer.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.draws = keras.random.SeedGenerator()

    def call(self, inputs, training=None, mask=None):
        return self.said(inputs, True) if training else super().call(inputs, training=training, mask=mask)

    def said(self, inputs, training):
        """Maps of the pyramid, logits and deltas of the anchors, proposals and which of them are any."""
        first, second = self.get_layer("proposals"), self.get_layer("regions")
        levels = len(first.sizes)
        wanted = {
            "maps": second.input[:-1],
            "logits": first.input[:levels],
            "deltas": first.input[levels:],
            "proposals": first.output,
        }
        return keras.Model(self.input, wanted)(inputs, training=training)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        if sample_weight is not None:
            raise ValueError("a two-stage detector takes no sample or class weights; leave them out")
        said = y_pred if isinstance(y_pred, dict) else self.said(x, False)
        truth = ops.convert_to_tensor(y, "float32")
        draws = self.draws if training else 0  # the same choice in every validation
        parts = [*self.first_losses(said, truth, draws), *self.second_losses(said, truth, draws)]
        return sum(parts) + sum(self.losses)

    def first_losses(self, said, truth, draws):
        """Cross-entropy of the anchors' logits, and error of their deltas."""
        batch = ops.shape(truth)[0]
        anchors = self.get_layer("proposals").all_anchors(said["logits"])[None]
        logits = ops.concatenate([ops.reshape(x, (batch, -1)) for x in said["logits"]], axis=1)
        deltas = ops.concatenate([ops.reshape(x, (batch, -1, 4)) for x in said["deltas"]], axis=1)
        labels, which = matched(truth[..., :4], truth[..., 4] >= 0, anchors, 0.3, 0.7, weak=True)
        places, chosen = sampled(labels, ANCHORS_LEARNED, ANCHORS_TRUE, draws)
        labels, logits, deltas = (picked(values, places) for values in (labels, logits, deltas))
        anchors = ops.take(anchors[0], places, axis=0)
        true = ops.logical_and(chosen, labels > NOTHING)
        wanted = moves(anchors, picked(truth[..., :4], picked(which, places)))
        right = ops.cast(true, logits.dtype)
        errors = ops.maximum(logits, 0.0) - logits * right + ops.log1p(ops.exp(-ops.abs(logits)))
        count = ops.maximum(ops.sum(ops.cast(chosen, "float32")), 1.0)
        return mean_of(errors, chosen), box_loss(deltas, wanted, true, count)

    def second_losses(self, said, truth, draws):
        """Cross-entropy of the regions' classes, and error of the deltas of their true class."""
        boxes, valid = said["proposals"]
        things, present = truth[..., :4], truth[..., 4] >= 0
        boxes = ops.stop_gradient(ops.concatenate([boxes, things], axis=1))  # the true ones are proposed, too
        valid = ops.concatenate([valid, present], axis=1)
        labels, which = matched(things, present, boxes, 0.5, 0.5)
        classes = ops.where(labels > NOTHING, picked(ops.cast(truth[..., 4], "int32"), which) + 1, NOTHING)
        classes = ops.where(valid, classes, UNUSED)
        places, chosen = sampled(classes, REGIONS_LEARNED, REGIONS_TRUE, draws)
        boxes, classes, which = (picked(values, places) for values in (boxes, classes, which))
        logits, deltas = self.head(said["maps"], boxes)
        true = ops.logical_and(chosen, classes > NOTHING)
        own = ops.one_hot(classes, logits.shape[-1], dtype=logits.dtype)
        errors = -ops.sum(own * ops.log_softmax(logits), axis=-1)
        deltas = ops.reshape(deltas, (-1, *own.shape[1:], 4))
        deltas = ops.sum(deltas * own[..., None], axis=2)
        wanted = moves(boxes, picked(things, which), RankBoxes.WEIGHTS)
        count = ops.maximum(ops.sum(ops.cast(chosen, "float32")), 1.0)
        return mean_of(errors, chosen), box_loss(deltas, wanted, true, count)

    def head(self, maps, boxes):
        """Logits and deltas of the classes for boxes (batch, boxes, 4)."""
        x = self.get_layer("regions")(maps, boxes)
        for name in ("flat", "head_dense", "features"):
            x = self.get_layer(name)(x)
        return self.get_layer("head_logits")(x), self.get_layer("head_deltas")(x)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        if isinstance(y_pred, dict):  # in training there are no answers to judge
            return {"loss": self.get_metrics_result()["loss"]}
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def get_metrics_result(self):
        """Of those metrics that have seen an answer; the compiled ones see none before the first validation."""
        found = {}
        for metric in self.metrics:
            if getattr(metric, "built", True):
                result = metric.result()
                found |= result if isinstance(result, dict) else {metric.name: result}
        return found


def _pyramid(maps, width):
    """Maps of one width, each with what the coarser ones saw, and a coarsest one of every second pixel."""
    found, below = [], None
    for level in reversed(range(len(maps))):
        own = layers.Conv2D(width, 1, kernel_initializer="lecun_uniform", name=f"pyramid_inner{level}")(maps[level])
        if below is not None:
            above = layers.UpSampling2D(2, name=f"pyramid_enlarge{level}")(below)
            surplus = [above.shape[axis] - own.shape[axis] for axis in (1, 2)]
            if any(surplus):
                above = layers.Cropping2D([(0, more) for more in surplus], name=f"pyramid_crop{level}")(above)
            own = layers.Add(name=f"pyramid_add{level}")([own, above])
        below = own
        outer = layers.Conv2D(width, 3, padding="same", kernel_initializer="lecun_uniform", name=f"pyramid{level}")
        found.insert(0, outer(own))
    return [*found, layers.MaxPooling2D(1, 2, name=f"pyramid{len(maps)}")(found[-1])]


def _propose(maps, width, image, anchors, ratios, count):
    """Proposals (batch, count, 4), and which of them are any."""
    normal = initializers.RandomNormal(stddev=0.01)
    conv = layers.Conv2D(
        width, 3, padding="same", activation="relu", kernel_initializer=normal.clone(), name="anchors_conv"
    )
    there = layers.Conv2D(len(ratios), 1, kernel_initializer=normal.clone(), name="anchors_logits")
    moved = layers.Conv2D(4 * len(ratios), 1, kernel_initializer=normal.clone(), name="anchors_deltas")
    seen = [conv(x) for x in maps]
    first = Proposals(image, anchors, ratios, count, count, name="proposals")
    return first([there(x) for x in seen], [moved(x) for x in seen])


def _dense(units, name, activation=None):
    """Dense layer that starts as torch's do."""
    start = initializers.VarianceScaling(1 / 3, "fan_in", "uniform")
    return layers.Dense(units, activation, kernel_initializer=start, name=name)


def _scale(map_height, height):
    """Pixels of a map per pixel of the image, to the nearest power of 2."""
    return 2.0 ** round(math.log2(map_height / height))


@register(
    "faster_rcnn",
    task="detection",
    inputs={"image": Tensor("height", "width", "channels", unit="zero mean, unit variance")},
    paper="Ren, He, Girshick & Sun 2015",
    params=41_808_406,
    params_source="torchvision fasterrcnn_resnet50_fpn; 41,755,286 of them where batch normalisation is frozen",
    tiny=dict(
        input_shape=(32, 32, 3),
        classes=3,
        depth=(1, 1),
        width=4,
        pyramid=4,
        hidden=8,
        anchors=(8, 16, 32),
        proposals=12,
        candidates=20,
    ),
    aliases=("faster_rcnn_resnet50_fpn",),
    data="shapes_boxes",
)
def faster_rcnn(
    input_shape: tuple[int, int, int] = (800, 800, 3),
    classes: int = 90,
    depth: tuple[int, ...] = (3, 4, 6, 3),
    width: int = 64,
    bottleneck: bool = True,
    stem: str = "imagenet",
    pyramid: int = 256,
    hidden: int = 1024,
    anchors: tuple[int, ...] = (32, 64, 128, 256, 512),
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0),
    proposals: int = 1000,
    candidates: int = 1000,
    frozen: bool = False,
) -> keras.Model:
    """Build a Faster R-CNN on a residual network with a feature pyramid.

    Args:
        input_shape: `(height, width, channels)` in pixels, any size.
        classes: kinds of things to find; the head has one more, for nothing at all.
        depth: blocks of each stage of the residual network; each stage gives a map to the pyramid.
        width: filters of the stem and of the first stage's inner convolutions; they double with each stage.
        bottleneck: blocks of 1x1, 3x3, 1x1 convolutions with four times wider output, else of two 3x3.
        stem: "imagenet" (7x7 stride 2, pooling), "small" (3x3 stride 1), or "auto": small below 64 pixels a side.
        pyramid: channels of its maps.
        hidden: units of the two dense layers that judge a region.
        anchors: sides in pixels of the anchors of each map, and of one more that has every second pixel of the last.
        ratios: height over width of the anchors of each place.
        proposals: regions of an image that are judged, and anchors of each map that compete to be one; twice as many
            of both in training.
        candidates: pairs of a region and a class that are answered.
        frozen: batch normalisation keeps scale, offset and statistics, as torchvision has it with pretrained weights.

    Returns:
        Functional model, `(batch, height, width, channels) -> (batch, candidates, 5 + classes)`: left, top, right and
        bottom in pixels, then the logits of there being a pair and of each class, which is very low for all but one.

    Raises:
        ValueError: an argument is out of range.
    """
    if len(anchors) != len(depth) + 1 or min(anchors) <= 0:
        raise ValueError(
            f"anchors must hold {len(depth) + 1} positive sides, one for each stage of depth={depth!r} and one more, "
            f"got anchors={anchors!r}"
        )
    for name, number in {"classes": classes, "pyramid": pyramid, "hidden": hidden, "proposals": proposals}.items():
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {name}={number!r}")
    if candidates < 1 or not ratios or min(ratios) <= 0:
        raise ValueError(
            f"candidates must be at least 1 and ratios positive, got candidates={candidates!r}, ratios={ratios!r}"
        )
    backbone = get(
        "resnet50", input_shape=input_shape, depth=depth, width=width, bottleneck=bottleneck, stem=stem, classes=1
    )
    for layer in backbone.layers:
        if frozen and isinstance(layer, layers.BatchNormalization):
            layer.trainable = False
    maps = [backbone.get_layer(f"stage{stage}_block{blocks - 1}_relu").output for stage, blocks in enumerate(depth)]
    image = tuple(input_shape[:2])
    maps = _pyramid(maps, pyramid)
    boxes, valid = _propose(maps, pyramid, image, anchors, ratios, proposals)

    scales = tuple(_scale(x.shape[1], image[0]) for x in maps[:-1])
    x = PyramidAlign(scales, name="regions")(maps[:-1], boxes)
    x = layers.Reshape((-1, math.prod(x.shape[2:])), name="flat")(x)
    x = _dense(hidden, "features", "relu")(_dense(hidden, "head_dense", "relu")(x))
    said = _dense(classes + 1, "head_logits")(x), _dense(4 * (classes + 1), "head_deltas")(x)
    answer = RankBoxes(image, candidates, name="logits")(*said, boxes, valid)
    return TwoStages(backbone.input, answer, name="faster_rcnn")
