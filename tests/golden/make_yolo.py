"""Write yolo.npz: what YOLOX answers in torch, for weights and images that a seed gives.

    python tests/golden/make_yolo.py        (needs torch; nothing of this package)

YOLOX is in no library, so its network stands here a second time: from the paper (arXiv:2107.08430), the names of the
tensors in the authors' checkpoints, and the numbers of parameters that they publish, which `parameters` gives exactly.
It slices the image, pools over 5, 9 and 13 pixels, and answers as the authors' network does when it judges images:
centre, width and height in pixels, then probabilities. The file holds no weights, see make_resnet.py.
"""

from pathlib import Path

import numpy as np
import references

PLACE = Path(__file__).with_name("yolo.npz")
KINDS = {"nano": dict(width=16, depth=1, depthwise=True), "narrow": dict(width=8, depth=2, depthwise=False)}
CLASSES = 5
SIDE = 64
STRIDES = (8, 16, 32)


def weights(shapes, gains, seed=0):
    """`references.weights`, with what each normalisation gives multiplied by its gain.

    Without it an image would be lost on the way through sixty layers, and the last of them would say the same of all.
    """
    drawn = references.weights(shapes, seed)
    for name, gain in gains.items():
        for part in ("weight", "bias"):
            drawn[f"{name}.bn.{part}"] = drawn[f"{name}.bn.{part}"] * np.float32(gain)
    return drawn


class Network:
    """The network on tensors by name; without weights it takes zeros and notes the shapes that it asks for.

    With `measure` it multiplies what each normalisation gives by a gain that makes it of deviation 1, and notes that.
    """

    def __init__(self, width, depth, depthwise, classes=CLASSES, weights=None, measure=False):
        self.width, self.depth, self.depthwise, self.classes = width, depth, depthwise, classes
        self.weights, self.measure, self.shapes, self.gains = weights, measure, {}, {}

    def take(self, name, *shape):
        import torch

        self.shapes[name] = shape
        return torch.zeros(shape) if self.weights is None else torch.from_numpy(self.weights[name])

    def block(self, x, name, filters, size=1, stride=1, groups=1):
        """Convolution, batch normalisation, SiLU."""
        from torch.nn import functional

        kernel = self.take(f"{name}.conv.weight", filters, x.shape[1] // groups, size, size)
        x = functional.conv2d(x, kernel, stride=stride, padding=size // 2, groups=groups)
        scale, offset, mean, variance = (
            self.take(f"{name}.bn.{part}", filters) for part in ("weight", "bias", "running_mean", "running_var")
        )
        self.shapes[f"{name}.bn.num_batches_tracked"] = ()
        x = functional.batch_norm(x, mean, variance, scale, offset, eps=1e-3)
        if self.measure:
            self.gains[name] = float(1 / x.std())
            x = x * self.gains[name]
        return functional.silu(x)

    def spatial(self, x, name, filters, stride=1):
        if not self.depthwise:
            return self.block(x, name, filters, 3, stride)
        x = self.block(x, f"{name}.dconv", x.shape[1], 3, stride, groups=x.shape[1])
        return self.block(x, f"{name}.pconv", filters)

    def split(self, x, name, filters, count, add):
        import torch

        passed = self.block(x, f"{name}.conv2", filters // 2)
        x = self.block(x, f"{name}.conv1", filters // 2)
        for index in range(count):
            y = self.spatial(
                self.block(x, f"{name}.m.{index}.conv1", filters // 2), f"{name}.m.{index}.conv2", filters // 2
            )
            x = x + y if add else y
        return self.block(torch.cat([x, passed], 1), f"{name}.conv3", filters)

    def pyramid(self, x, name):
        import torch
        from torch.nn import functional

        filters = x.shape[1]
        x = self.block(x, f"{name}.conv1", filters // 2)
        pooled = [functional.max_pool2d(x, size, 1, size // 2) for size in (5, 9, 13)]
        return self.block(torch.cat([x, *pooled], 1), f"{name}.conv2", filters)

    def maps(self, image):
        """Maps at strides 8, 16 and 32."""
        import torch

        sliced = [image[..., down::2, right::2] for down, right in ((0, 0), (1, 0), (0, 1), (1, 1))]
        dark = "backbone.backbone"
        x = self.block(torch.cat(sliced, 1), f"{dark}.stem.conv", self.width, 3)
        found = []
        for number, count in zip((2, 3, 4, 5), (self.depth, 3 * self.depth, 3 * self.depth, self.depth), strict=True):
            filters = self.width * 2 ** (number - 1)
            x = self.spatial(x, f"{dark}.dark{number}.0", filters, 2)
            if number == 5:
                x = self.pyramid(x, f"{dark}.dark5.1")
            x = self.split(x, f"{dark}.dark{number}.{2 if number == 5 else 1}", filters, count, number < 5)
            found.append(x)
        return found[1:]

    def neck(self, maps):
        import torch
        from torch.nn import functional

        def joined(name, filters, *parts):
            return self.split(torch.cat(parts, 1), f"backbone.{name}", filters, self.depth, False)

        def doubled(x):
            return functional.interpolate(x, scale_factor=2, mode="nearest")

        fine, middle, coarse = maps
        four, eight, sixteen = (times * self.width for times in (4, 8, 16))
        top = self.block(coarse, "backbone.lateral_conv0", eight)
        middle = joined("C3_p4", eight, doubled(top), middle)
        middle = self.block(middle, "backbone.reduce_conv1", four)
        fine = joined("C3_p3", four, doubled(middle), fine)
        middle = joined("C3_n3", eight, self.spatial(fine, "backbone.bu_conv2", four, 2), middle)
        coarse = joined("C3_n4", sixteen, self.spatial(middle, "backbone.bu_conv1", eight, 2), top)
        return fine, middle, coarse

    def answers(self, image):
        """(batch, places, 5 + classes): centre, width, height in pixels; probabilities of a thing and of each class."""
        import torch
        from torch.nn import functional

        found = []
        for level, (own, stride) in enumerate(zip(self.neck(self.maps(image)), STRIDES, strict=True)):
            filters = 4 * self.width
            x = self.block(own, f"head.stems.{level}", filters)
            branches = {}
            for branch in ("cls", "reg"):
                y = x
                for index in range(2):
                    y = self.spatial(y, f"head.{branch}_convs.{level}.{index}", filters)
                branches[branch] = y
            said = []
            for name, branch, count in (("reg", "reg", 4), ("obj", "reg", 1), ("cls", "cls", self.classes)):
                kernel = self.take(f"head.{name}_preds.{level}.weight", count, filters, 1, 1)
                said.append(
                    functional.conv2d(branches[branch], kernel, self.take(f"head.{name}_preds.{level}.bias", count))
                )
            box, thing, kind = (part.flatten(2).transpose(1, 2) for part in said)
            height, width = x.shape[2:]
            down, right = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            corner = torch.stack([right.flatten(), down.flatten()], 1)
            found.append(
                torch.cat(
                    [(box[..., :2] + corner) * stride, box[..., 2:].exp() * stride, thing.sigmoid(), kind.sigmoid()], 2
                )
            )
        return torch.cat(found, 1)


def parameters(width, depth, depthwise, classes=80):
    """Trainable parameters, which the authors publish for 80 classes."""
    import torch

    network = Network(width, depth, depthwise, classes)
    network.answers(torch.zeros(1, 3, 32, 32))
    counted = {
        name: shape for name, shape in network.shapes.items() if "running" not in name and "num_batches" not in name
    }
    return sum(int(np.prod(shape)) for shape in counted.values())


def torch_answers(kind, seed=0):
    """Shapes of the tensors, gains of the normalisations, and answers for `references.images(SIDE)`."""
    import torch

    images = torch.from_numpy(references.images(SIDE).transpose(0, 3, 1, 2).copy())
    first = Network(**KINDS[kind])
    first.answers(images)
    measured = Network(**KINDS[kind], weights=references.weights(first.shapes, seed), measure=True)
    measured.answers(images)
    network = Network(**KINDS[kind], weights=weights(first.shapes, measured.gains, seed))
    return first.shapes, measured.gains, network.answers(images).numpy()


if __name__ == "__main__":
    published = {(32, 1, False): 8_968_255, (24, 1, False): 5_055_855}  # small and tiny; nano is told as 0.91 M
    assert all(parameters(*arguments) == count for arguments, count in published.items())
    golden = {}
    for kind in KINDS:
        shapes, gains, answers = torch_answers(kind)
        golden[f"{kind}/names"] = np.array(list(shapes))
        golden[f"{kind}/shapes"] = np.array([(*shape, *[0] * (4 - len(shape))) for shape in shapes.values()], np.int32)
        golden[f"{kind}/blocks"] = np.array(list(gains))
        golden[f"{kind}/gains"] = np.array(list(gains.values()), np.float32)
        golden[f"{kind}/answers"] = answers
    np.savez_compressed(PLACE, **golden)
    for kind in KINDS:
        answers = golden[f"{kind}/answers"]
        told = np.abs(answers[..., :4]).max(), np.ptp(answers[..., 4:], axis=0).mean()
        print(f"{kind}: largest number in pixels {told[0]:.1f}, images differ by {told[1]:.3f} in a probability")
    print(f"{PLACE.name}: {PLACE.stat().st_size:,} bytes; nano has {parameters(16, 1, True):,} parameters")
