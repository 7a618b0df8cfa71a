"""Recipes of the literature for full data sets, as settings of `zoo.recipes.Recipe`.

They have not been run here on those data: `published` is what their source reports, not what this package has reached,
and `departures` says where the trainer does something else. A penalty `l2` is half of what PyTorch and MXNet call weight
decay, since its gradient is twice the weight; it is laid on kernels alone.
"""

from dataclasses import dataclass
from typing import Any

from zoo.registry import suggest


@dataclass(frozen=True)
class Published:
    """One recipe.

    Attributes:
        settings: of `zoo.recipes.Recipe`, with the model's `arguments` among them.
        data: what it is for, and in which form it is given.
        published: the score that the source reports.
        source: paper with section, or reference repository with file.
        departures: what is not as the source has it.
        known: name of the data set where `zoo.data` has it, which is then taken where no other is given.
    """

    settings: dict[str, Any]
    data: str
    published: str
    source: str
    departures: tuple[str, ...] = ()
    known: str = ""


_IMAGENET = "ImageNet (ILSVRC 2012): a folder with train and val, and in each a folder of pictures for each class"
_COCO = "COCO 2017: a folder with annotations/instances_train2017.json and …val2017.json, train2017 and val2017"
_SQUARE = (
    "pictures are first brought to the input size without regard to their proportions, and crops are cut from that"
)
_WHOLE = "validation pictures are judged whole; the source cuts the middle out of slightly larger ones"
_DECAY = "weight decay is a penalty on kernels, not on biases and normalisation"
_SIZED = "pictures have one size and lose their proportions; the source keeps these and varies the size while training"
_AVERAGED = "each epoch is judged with the plain weights; their average is what the run ends with"
_PLAIN = (_SQUARE, _WHOLE, _DECAY)

_TORCHVISION = dict(  # of its classification reference, up to what each family changes
    epochs=90,
    batch_size=256,
    optimizer="momentum",
    learning_rate=0.1,
    schedule="milestones:30:60",
    weight_decay=0.0,
    l2=5e-5,
    scaling="torch",
    augment=("resized_crop", "flip"),
)
_SCRIPT = "torchvision, references/classification (README.md and train.py)"


def _large(size: int, **arguments: Any) -> dict[str, Any]:
    return {"arguments": {"input_shape": (size, size, 3), **arguments}}


def _resnet(accuracy: float) -> dict[str, Published]:
    found = Published(
        settings=_TORCHVISION | _large(224),
        data=_IMAGENET,
        published=f"top-1 accuracy {accuracy}",
        source=f"{_SCRIPT}; He et al. 2015, section 3.4, with steps of 30 epochs",
        departures=_PLAIN,
    )
    return {"imagenet": found}


def _vgg(accuracy: float) -> dict[str, Published]:
    found = Published(
        settings=_TORCHVISION | _large(224, dropout=0.5) | dict(learning_rate=0.01),
        data=_IMAGENET,
        published=f"top-1 accuracy {accuracy}",
        source=f"{_SCRIPT}; Simonyan & Zisserman 2014, section 3.1, has 74 epochs and a weight decay of 5e-4",
        departures=_PLAIN,
    )
    return {"imagenet": found}


def _deit(accuracy: float) -> Published:
    return Published(
        settings=_large(224)
        | dict(
            epochs=300,
            batch_size=1024,
            optimizer="adamw",
            epsilon=1e-8,
            learning_rate=1e-3,
            schedule="cosine:0.01",
            warmup=5 / 300,
            weight_decay=0.05,
            label_smoothing=0.1,
            averaging=0.99996,
            scaling="torch",
            augment=("resized_crop", "flip", "randaugment:2:9", "erase:0.25", "mixup_or_cutmix:0.8:1"),
        ),
        data=_IMAGENET,
        published=f"top-1 accuracy {accuracy}",
        source="Touvron et al. 2021 (DeiT, arXiv:2012.12877), table 9, and facebookresearch/deit, main.py",
        departures=(
            _SQUARE,
            _WHOLE,
            _AVERAGED,
            "no stochastic depth (0.1 there)",
            "each picture is drawn once an epoch, not three times (repeated augmentation)",
            "RandAugment has one strength, not a random one around 9, and no colour jitter beside it",
            "weight decay is also on biases and normalisation",
        ),
    )


def _plain_vit() -> Published:
    return Published(
        settings=_large(224, pool="mean")
        | dict(
            epochs=90,
            batch_size=1024,
            optimizer="adamw",
            learning_rate=1e-3,
            schedule="cosine",
            warmup=0.09,  # 10,000 of 111,000 steps
            weight_decay=0.1,  # 1e-4 of the weight at the highest rate
            clip_norm=1.0,
            scaling="tf",
            augment=("resized_crop:0.05", "flip", "randaugment:2:10", "mixup:0.2"),
        ),
        data=_IMAGENET,
        published="top-1 accuracy 0.765; 0.800 with epochs=300",
        source="Beyer, Zhai & Kolesnikov 2022 (arXiv:2205.01580), and google-research/big_vision, configs/vit_s16_i1k.py",
        departures=(
            _SQUARE,
            _WHOLE,
            "positions are learned, not fixed sines and cosines",
            "no extra layer before the head (rep_size there)",
            "weight decay is also on biases and normalisation",
        ),
    )


def _yolox(precision: float, size: int, mosaic: str, *departures: str) -> dict[str, Published]:
    found = Published(
        settings=_large(size)
        | dict(
            epochs=300,
            batch_size=64,
            optimizer="nesterov",
            learning_rate=0.01,
            schedule="cosine:0.05",
            warmup=5 / 300,
            weight_decay=0.0,
            l2=2.5e-4,
            averaging=0.9998,
            loss="simota",
            scaling="0/1",
            augment=(mosaic, "flip", "colour"),
            unmixed=15,
        ),
        data=_COCO,
        published=f"average precision (0.50:0.95) on val2017 {precision}",
        source="Ge et al. 2021 (YOLOX, arXiv:2107.08430), section 2.1, and Megvii-BaseDetection/YOLOX, yolox/exp/yolox_base.py",
        departures=(
            _SIZED,
            _AVERAGED,
            "no rotation, shear or shift of the mosaic, and colours change by contrast and brightness, not hue",
            "without mosaic the last 15 epochs have neither the extra L1 loss (loss=simota_l1 has it in all) nor a still rate",
            "its warm-up is linear, not quadratic",
            *departures,
        ),
    )
    return {"coco": found}


def _arcface(lfw: str, casia: str) -> dict[str, Published]:
    shared = _large(112) | dict(
        batch_size=512,
        optimizer="momentum",
        learning_rate=0.1,
        weight_decay=0.0,
        l2=2.5e-4,
        loss="arcface:0.5:64",
        scaling="127.5/128",
        augment=("flip",),
    )
    source = "Deng et al. 2019 (ArcFace, arXiv:1801.07698), section 3.1"
    form = (
        "aligned faces of 112x112 pixels, a folder for each person, and pairs.txt of Labeled Faces in the Wild beside"
    )
    departures = (
        "four pictures of a person stand side by side in an epoch; the source draws pictures alone",
        "steps are counted in epochs, of which the source's are the number given",
        "weight decay is a penalty on kernels",
    )
    return {
        "ms1mv2": Published(
            settings=shared | dict(epochs=16, schedule="milestones:9:14"),
            data=f"MS1MV2, {form}",
            published=lfw,
            source=f"{source}: 180,000 steps, divided by 10 after 100,000 and 160,000",
            departures=departures,
        ),
        "casia": Published(
            settings=shared | dict(epochs=33, schedule="milestones:21:29"),
            data=f"CASIA-WebFace, {form}",
            published=casia,
            source=f"{source}: 32,000 steps, divided by 10 after 20,000 and 28,000",
            departures=departures,
        ),
    }


_NO_FIGURE = "none for this depth"

LITERATURE: dict[str, dict[str, Published]] = {
    "resnet18": _resnet(0.69758),
    "resnet34": _resnet(0.73314),
    "resnet50": _resnet(0.76130),
    "resnet101": _resnet(0.77374),
    "resnet152": _resnet(0.78312),
    "resnet50v2": {
        "imagenet": Published(
            settings=_TORCHVISION | _large(224),
            data=_IMAGENET,
            published="top-1 accuracy 0.760, of the weights of keras.applications",
            source=f"{_SCRIPT}, the recipe of resnet50; He et al. 2016, section 3, train their deeper ones alike",
            departures=(*_PLAIN, "how the weights of the figure were trained is not published"),
        )
    },
    "vgg11": _vgg(0.69020),
    "vgg13": _vgg(0.69928),
    "vgg16": _vgg(0.71592),
    "vgg19": _vgg(0.72376),
    "inception_v1": {
        "imagenet": Published(
            settings=_large(224, dropout=0.4)
            | dict(
                epochs=60,
                batch_size=32,
                optimizer="momentum",
                learning_rate=0.01,
                schedule="poly:0.5",
                weight_decay=0.0,
                l2=1e-4,
                scaling="torch",
                augment=("resized_crop", "flip"),
            ),
            data=_IMAGENET,
            published="top-1 accuracy 0.687",
            source="BVLC/caffe, models/bvlc_googlenet (readme.md and quick_solver.prototxt); Szegedy et al. 2014, section 6",
            departures=(
                *_PLAIN,
                "no auxiliary heads",
                "normalised after each convolution, which the source is not",
                "crops vary in size as the paper has it; the reference crops 224 of 256 pixels",
            ),
        )
    },
    "inception_v3": {
        "imagenet": Published(
            settings=_large(299, dropout=0.2)
            | dict(
                epochs=100,
                batch_size=32,
                optimizer="rmsprop",
                momentum=0.9,
                epsilon=1.0,
                learning_rate=0.045,
                schedule="decay:0.94:2",
                weight_decay=0.0,
                l2=2e-5,
                clip_norm=2.0,
                label_smoothing=0.1,
                averaging=0.9999,
                scaling="tf",
                augment=("resized_crop:0.05", "flip", "colour"),
            ),
            data=_IMAGENET,
            published="top-1 accuracy 0.788",
            source="Szegedy et al. 2015 (arXiv:1512.00567), section 8 and table 3; momentum and weight decay of TensorFlow's slim",
            departures=(
                *_PLAIN,
                _AVERAGED,
                "one worker, not 50 whose steps are not synchronised",
                "no auxiliary head",
            ),
        )
    },
    "mobilenet_v2": {
        "imagenet": Published(
            settings=_TORCHVISION
            | _large(224, dropout=0.2)
            | dict(epochs=300, learning_rate=0.045, schedule="decay:0.98:1", l2=2e-5),
            data=_IMAGENET,
            published="top-1 accuracy 0.71878",
            source=f"{_SCRIPT}; Sandler et al. 2018, section 6.1, uses RMSProp",
            departures=_PLAIN,
        )
    },
    "capsnet": {
        "mnist": Published(
            settings=dict(
                arguments=dict(input_shape=(28, 28, 1)),
                epochs=50,
                batch_size=128,
                optimizer="adam",
                learning_rate=1e-3,
                schedule="decay:0.9:1",
                weight_decay=0.0,
                loss="margin",
                scaling="0/255",
                augment=("shift:2",),
            ),
            data="MNIST",
            published="accuracy 0.9975 on the test rows",
            source="Sabour, Frosst & Hinton 2017 (arXiv:1710.09829), section 5 and table 1",
            departures=(
                "the paper names neither epochs, batch size nor decay: these are common ones, and its figure may need more",
                "a part of the training rows is held out to choose the best epoch",
            ),
            known="mnist",
        )
    },
    "vit_tiny": {"imagenet": _deit(0.722)},
    "vit_small": {"imagenet": _deit(0.798), "imagenet_plain": _plain_vit()},
    "vit_base": {"imagenet": _deit(0.818)},
    "unet": {
        "phc_u373": Published(
            settings=dict(
                arguments=dict(input_shape=(512, 512, 1), dropout=0.5),
                epochs=300,
                batch_size=1,
                optimizer="momentum",
                momentum=0.99,
                learning_rate=1e-3,
                schedule="constant",
                weight_decay=0.0,
                augment=("flip", "rotate", "shift", "colour"),
            ),
            data="PhC-U373 of the ISBI cell tracking challenge: a folder with images and masks, as PNG files",
            published="intersection over union of the cells 0.9203",
            source="Ronneberger, Fischer & Brox 2015, sections 3 and 4 and table 2",
            departures=(
                "no elastic deformations, which the paper calls the key; turns, shifts and flips in their place",
                "pixels between touching cells weigh no more than others",
                "pictures are resized and padded inside the network; the paper cuts tiles of 572 pixels without padding",
                "the paper names neither learning rate nor epochs: these are ours",
            ),
        )
    },
    "yolo_small": _yolox(0.405, 640, "mosaic:1:0.1:2", "no mixing of two pictures with boxes (MixUp there)"),
    "yolo_tiny": _yolox(0.328, 416, "mosaic:1:0.5:1.5"),
    "yolo_nano": _yolox(0.258, 416, "mosaic:0.5:0.5:1.5"),
    "faster_rcnn": {
        "coco": Published(
            settings=_large(800)
            | dict(
                epochs=26,
                batch_size=16,
                optimizer="momentum",
                learning_rate=0.02,
                schedule="milestones:16:22",
                warmup=0.0053,  # 1,000 of 190,500 steps
                weight_decay=0.0,
                l2=5e-5,
                scaling="torch",
                augment=("flip",),
            ),
            data=_COCO,
            published="average precision (0.50:0.95) on val2017 0.370",
            source="torchvision, references/detection (README.md and train.py); Lin et al. 2017 (arXiv:1612.03144), section 5.2",
            departures=(
                _SIZED,
                "the backbone begins untrained; the source's has weights of ImageNet, whose normalisation stands still",
                _DECAY,
            ),
        )
    },
    "face_embedding": _arcface("none for this depth; iresnet100 0.9983 on LFW", "verification accuracy on LFW 0.9953"),
    "iresnet18": _arcface(_NO_FIGURE, _NO_FIGURE),
    "iresnet34": _arcface(_NO_FIGURE, _NO_FIGURE),
    "iresnet100": _arcface("verification accuracy on LFW 0.9983", _NO_FIGURE),
}


def find(model: str, name: str) -> Published:
    """A model's recipe by its name.

    Raises:
        ValueError: it has none of that name.
    """
    known = LITERATURE.get(model, {})
    if name not in known:
        raise ValueError(
            f"{model!r} has no recipe of the literature called {name!r}; it has {', '.join(known) or 'none'}."
            f"{suggest(name, known)}"
        )
    return known[name]
