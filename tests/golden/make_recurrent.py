"""Write recurrent.npz: what PyTorch's recurrent networks answer to packed rows of several lengths, for weights of a seed.

The networks are `nn.RNN`, `nn.LSTM` and `nn.GRU` with a linear layer behind the last state (of both ways, one after the
other). To be run where torch is installed:

    python tests/golden/make_recurrent.py
"""

from pathlib import Path

import numpy as np
import references

PLACE = Path(__file__).with_name("recurrent.npz")
COLUMNS, WIDTH, CLASSES, LENGTHS = 3, 5, 4, (6, 2, 1, 5)
KINDS = {
    f"{'bidirectional_' * both}{cell}/{depth}": (cell, depth, both)
    for cell in ("simple_rnn", "lstm", "gru")
    for depth in (1, 2)
    for both in (False, True)
}


def series():
    """Rows of `LENGTHS` steps, float32 (rows, steps, COLUMNS), NaN behind the end of each."""
    rows = np.random.RandomState(2).standard_normal((len(LENGTHS), max(LENGTHS), COLUMNS)).astype(np.float32)
    for row, length in zip(rows, LENGTHS, strict=True):
        row[length:] = np.nan
    return rows


def torch_answers(kind, seed=0):
    """Shapes of the state dictionary by name, and answers (rows, CLASSES) to `series()`."""
    import torch
    from torch import nn

    cell, depth, both = KINDS[kind]

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            layer = {"simple_rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}[cell]
            self.rnn = layer(COLUMNS, WIDTH, depth, batch_first=True, bidirectional=both)
            self.fc = nn.Linear(WIDTH * (1 + both), CLASSES)

        def forward(self, rows):
            state = self.rnn(rows)[1]
            state = state[0] if cell == "lstm" else state  # (layers and ways, batch, units)
            return self.fc(torch.cat(list(state[-1 - both :]), dim=1))

    model = Network().eval()
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in references.weights(shapes, seed).items()})
    packed = nn.utils.rnn.pack_padded_sequence(
        torch.from_numpy(np.nan_to_num(series())), torch.tensor(LENGTHS), batch_first=True, enforce_sorted=False
    )
    with torch.no_grad():
        return shapes, model(packed).numpy()


if __name__ == "__main__":
    references.save(PLACE, KINDS, torch_answers)
