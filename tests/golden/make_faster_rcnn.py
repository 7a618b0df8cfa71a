"""Write faster_rcnn.npz: what torchvision's Faster R-CNN says at each stage, for weights and images that a seed gives.

    python tests/golden/make_faster_rcnn.py        (needs torch and torchvision; nothing of this package)

The network is small: one block in each stage of the backbone, and a narrow pyramid and head. torchvision's compiled
operators may be missing, so plain ones stand in for them here.
"""

from contextlib import contextmanager
from pathlib import Path

import numpy as np
import references

PLACE = Path(__file__).with_name("faster_rcnn.npz")
CLASSES, PYRAMID, HIDDEN = 5, 16, 32
HEIGHT, WIDTH = 96, 64
ANCHORS = (8, 16, 32, 64, 128)
CANDIDATES, PROPOSALS, FOUND = 20, 60, 80  # anchors of a map that compete, regions judged, and boxes found
FACTORS = {
    "backbone.fpn.inner_blocks.0.0": 0.05,
    "backbone.fpn.inner_blocks.1.0": 0.5,
    "rpn.head.cls_logits": 0.5,
    "rpn.head.bbox_pred": 0.3,
    "roi_heads.box_predictor.bbox_pred": 2.0,
}


def nms(boxes, scores, iou_threshold):
    """Indices of boxes that overlap no better one by more than the threshold, best first."""
    import torch
    from torchvision.ops import box_iou

    order = torch.argsort(scores, descending=True, stable=True)
    overlaps = box_iou(boxes[order], boxes[order])
    kept = []
    for place in range(len(order)):
        if all(overlaps[place, better] <= iou_threshold for better in kept):
            kept.append(place)
    return order[kept]


def roi_align(features, boxes, output_size, spatial_scale=1.0, sampling_ratio=-1, aligned=False):
    """Means of bilinear samples (boxes, channels, height, width) under boxes (boxes, 5), whose first number is the image."""
    import torch

    assert sampling_ratio > 0 and not aligned, "the detector uses no other"
    high, wide = features.shape[2:]
    cells = output_size[0]
    made = []
    for image, *corners in boxes.double().tolist():
        left, top, right, bottom = (corner * spatial_scale for corner in corners)
        steps = (torch.arange(cells * sampling_ratio).double() + 0.5) / (cells * sampling_ratio)
        y, x = top + max(bottom - top, 1.0) * steps, left + max(right - left, 1.0) * steps

        def weights(points, size):
            """What each pixel of an axis counts at each point: (points, size)."""
            near = (points >= -1) & (points <= size)
            points = points.clamp(0, size - 1)
            hat = 1 - (points[:, None] - torch.arange(size).double()).abs()
            return hat.clamp(min=0) * near[:, None]

        map_ = features[int(image)].double()
        samples = torch.einsum("yh,chw,xw->cyx", weights(y, high), map_, weights(x, wide))
        made.append(samples.reshape(len(map_), cells, sampling_ratio, cells, sampling_ratio).mean(dim=(2, 4)))
    empty = features.new_zeros((0, features.shape[1], *output_size))
    return torch.stack(made).to(features.dtype) if made else empty


@contextmanager
def plain_operators():
    """torchvision with the operators above in place of its compiled ones."""
    references.torchvision()
    from torchvision.ops import boxes, poolers

    before = boxes.nms, poolers.roi_align
    boxes.nms, poolers.roi_align = nms, roi_align
    try:
        yield
    finally:
        boxes.nms, poolers.roi_align = before


def images(rows=2):
    """Random images, float32 (rows, HEIGHT, WIDTH, 3)."""
    return np.random.RandomState(2).standard_normal((rows, HEIGHT, WIDTH, 3)).astype(np.float32)


def torch_model(**settings):
    """torchvision's detector as its published weights have it, but small."""
    vision = references.torchvision().models
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.backbone_utils import BackboneWithFPN
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.ops import FrozenBatchNorm2d

    def frozen(channels):
        return FrozenBatchNorm2d(channels, eps=0.0)

    body = vision.resnet.ResNet(vision.resnet.Bottleneck, [1, 1, 1, 1], norm_layer=frozen)
    levels = {f"layer{stage + 1}": str(stage) for stage in range(4)}
    backbone = BackboneWithFPN(body, levels, [256, 512, 1024, 2048], PYRAMID)
    return FasterRCNN(
        backbone,
        rpn_anchor_generator=AnchorGenerator(tuple((side,) for side in ANCHORS), ((0.5, 1.0, 2.0),) * 5),
        box_head=TwoMLPHead(PYRAMID * 49, HIDDEN),
        box_predictor=FastRCNNPredictor(HIDDEN, CLASSES + 1),
        rpn_pre_nms_top_n_test=CANDIDATES,
        rpn_post_nms_top_n_test=PROPOSALS,
        box_detections_per_img=FOUND,
        **settings,
    ).eval()


def weights(shapes, seed=0):
    """Weights of which every stage says something: maps of one size, boxes that move by a share of their sides."""
    found = references.weights(shapes, seed)
    for name, factor in FACTORS.items():
        for variable in ("weight", "bias"):
            found[f"{name}.{variable}"] *= np.float32(factor)
    return found


def set_weights(model, seed=0):
    """Set them, and give the shapes they were drawn for."""
    import torch

    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in weights(shapes, seed).items()})
    return shapes


def torch_answers(seed=0):
    """Shapes of the state dictionary, and what each stage gives, channels last, for `images()`."""
    import torch

    model = torch_model()
    shapes = set_weights(model, seed)
    from torchvision.models.detection.image_list import ImageList

    x = torch.from_numpy(images().transpose(0, 3, 1, 2).copy())
    sizes = [(HEIGHT, WIDTH)] * len(x)
    found = {}
    with torch.no_grad(), plain_operators():
        maps = model.backbone(x)
        logits, deltas = model.rpn.head(list(maps.values()))
        proposals, _ = model.rpn(ImageList(x, sizes), maps)
        cut = model.roi_heads.box_roi_pool(maps, proposals, sizes)
        hidden = model.roi_heads.box_head(cut)
        class_logits, class_deltas = model.roi_heads.box_predictor(hidden)
        answers = model.roi_heads.postprocess_detections(class_logits, class_deltas, proposals, sizes)
    for level, (map_, logit, delta) in enumerate(zip(maps.values(), logits, deltas, strict=True)):
        found[f"map{level}"], found[f"logits{level}"], found[f"deltas{level}"] = (
            tensor.numpy().transpose(0, 2, 3, 1) for tensor in (map_, logit, delta)
        )
    rows = [len(boxes) for boxes in proposals]
    assert rows == [PROPOSALS] * len(x), f"the comparison wants {PROPOSALS} proposals in each image, there are {rows}"
    shape = (len(x), PROPOSALS)
    found["proposals"] = torch.stack(proposals).numpy()
    found["regions"] = cut.numpy().transpose(0, 2, 3, 1).reshape(*shape, 7, 7, PYRAMID)
    found["class_logits"] = class_logits.numpy().reshape(*shape, -1)
    found["class_deltas"] = class_deltas.numpy().reshape(*shape, -1)
    found["boxes"], found["scores"], found["labels"] = (
        torch.nn.utils.rnn.pad_sequence(list(part), batch_first=True, padding_value=-1).numpy() for part in answers
    )
    return shapes, found


def things():
    """True boxes (3, 3, 5): left, top, right, bottom, class, -1 where there is none; the last image is empty."""
    found = np.full((3, 3, 5), -1, np.float32)
    found[0] = [[2, 3, 30, 40, 0], [20, 50, 60, 90, 4], [40, 8, 50, 17, 2]]
    found[1, 0] = [10.5, 20.25, 50, 44, 1]
    return found


def torch_losses(seed=0):
    """The four losses of training on `images(3)` and `things()`, and the gradient of their sum by weight.

    Nothing is left to chance: every anchor and every region counts. The losses are those of the anchors' logits and
    deltas, then of the regions'.
    """
    import torch

    everything = {"batch_size_per_image": 10**6, "positive_fraction": 1.0}
    settings = {f"{stage}_{name}": value for stage in ("rpn", "box") for name, value in everything.items()}
    model = torch_model(**settings, rpn_pre_nms_top_n_train=2 * CANDIDATES, rpn_post_nms_top_n_train=2 * PROPOSALS)
    set_weights(model, seed)
    from torchvision.models.detection.image_list import ImageList

    x = torch.from_numpy(images(3).transpose(0, 3, 1, 2).copy())
    sizes = [(HEIGHT, WIDTH)] * len(x)
    present = [torch.from_numpy(own[own[:, 4] >= 0]) for own in things()]
    targets = [{"boxes": own[:, :4], "labels": own[:, 4].long() + 1} for own in present]
    with plain_operators():
        model.train()
        maps = model.backbone(x)
        proposals, first = model.rpn(ImageList(x, sizes), maps, targets)
        _, second = model.roi_heads(maps, proposals, sizes, targets)
    names = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg")
    losses = [{**first, **second}[name] for name in names]
    sum(losses).backward()
    slopes = {name: weight.grad.numpy() for name, weight in model.named_parameters()}
    return np.array([loss.item() for loss in losses], np.float32), slopes


if __name__ == "__main__":
    shapes, found = torch_answers()
    losses, _ = torch_losses()
    print("losses", losses)
    golden = {f"out/{name}": array for name, array in found.items()}
    golden["out/map0"] = golden["out/map0"][:, ::4, ::4]
    golden["out/regions"] = golden["out/regions"][:, ::6]
    golden["losses"] = losses
    golden["names"] = np.array(list(shapes))
    golden["shapes"] = np.array([(*shape, *[0] * (4 - len(shape))) for shape in shapes.values()], np.int32)
    np.savez_compressed(PLACE, **golden)
    print(f"{PLACE.name}: {PLACE.stat().st_size:,} bytes")
    for name, array in found.items():
        print(f"{name:14} {array.shape} largest {np.abs(array).max():.3g} spread {array.std():.3g}")
    sides = np.sqrt(np.prod(found["proposals"][..., 2:] - found["proposals"][..., :2], axis=-1))
    print(
        "sides of proposals", np.percentile(sides, [0, 25, 50, 75, 100]), "labels", np.bincount(found["labels"].ravel())
    )
