"""Write face_embedding.npz: what a torch network with InsightFace's names answers, for weights and images that a seed gives.

    python tests/golden/make_face_embedding.py        (needs torch; nothing of this package)

The network is written here from figure and text of the paper (arXiv:1801.07698, section 2.2), with the names that the
published files have. The file holds no weights, see `references.weights`.
"""

from pathlib import Path

import numpy as np
import references

PLACE = Path(__file__).with_name("face_embedding.npz")
DEPTH = (2, 1, 1, 1)
SIDE = 40
LATENT = 24


def torch_network(depth, latent, side, channels=3, width=64):
    """A module in evaluation mode whose state dictionary has the published names."""
    from torch import nn

    class Block(nn.Module):
        def __init__(self, given, filters, stride):
            super().__init__()
            self.bn1 = nn.BatchNorm2d(given)
            self.conv1 = nn.Conv2d(given, filters, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(filters)
            self.prelu = nn.PReLU(filters)
            self.conv2 = nn.Conv2d(filters, filters, 3, stride, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(filters)
            if stride > 1:
                self.downsample = nn.Sequential(
                    nn.Conv2d(given, filters, 1, stride, bias=False), nn.BatchNorm2d(filters)
                )

        def forward(self, x):
            y = self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x)))))
            return self.bn3(y) + (self.downsample(x) if hasattr(self, "downsample") else x)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.prelu = nn.PReLU(width)
            given, map_side = width, side
            for stage, blocks in enumerate(depth):
                filters = width * 2**stage
                parts = [Block(given if not place else filters, filters, 1 if place else 2) for place in range(blocks)]
                setattr(self, f"layer{stage + 1}", nn.Sequential(*parts))
                given, map_side = filters, -(-map_side // 2)
            self.bn2 = nn.BatchNorm2d(given)
            self.fc = nn.Linear(given * map_side**2, latent)
            self.features = nn.BatchNorm1d(latent)

        def forward(self, x):
            x = self.prelu(self.bn1(self.conv1(x)))
            for stage in range(len(depth)):
                x = getattr(self, f"layer{stage + 1}")(x)
            return nn.functional.normalize(self.features(self.fc(self.bn2(x).flatten(1))))

    return Network().eval()


def torch_answers(depth=DEPTH, side=SIDE, latent=LATENT, seed=0):
    """Shapes of the state dictionary, and embeddings (batch, latent) for `references.images(side)`."""
    import torch

    model = torch_network(depth, latent, side)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in references.weights(shapes, seed).items()})
    with torch.no_grad():
        return shapes, model(torch.from_numpy(references.images(side).transpose(0, 3, 1, 2).copy())).numpy()


if __name__ == "__main__":
    shapes, embeddings = torch_answers()
    np.savez_compressed(
        PLACE,
        names=np.array(list(shapes)),
        shapes=np.array([(*shape, *[0] * (4 - len(shape))) for shape in shapes.values()], np.int32),
        embeddings=embeddings,
    )
    print(f"{PLACE.name}: {PLACE.stat().st_size:,} bytes", np.abs(embeddings).max())
