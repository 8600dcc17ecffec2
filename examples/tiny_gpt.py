"""A tiny GPT on the standard library's documentation, character by character: `tiny_gpt.py OUT`."""

import sys
from pathlib import Path

import torch
from texts import documentation
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from dynamics import open_run
from probes import GradNorm, Recorder, SampleLoss, sequence_losses, with_sample_ids

LENGTH, PAD = 64, 0


class TinyGPT(nn.Module):
    """Embeddings, two transformer layers with causal attention, and a head."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(128, width), nn.Embedding(LENGTH, width)
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 128)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the next character, shape (N, T, 128)."""
        # A row of positions for each sequence, as gradient norms need it.
        places = torch.arange(x.shape[1]).expand(x.shape)
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        h = self.body(self.tokens(x) + self.positions(places), mask=mask, is_causal=True)
        return self.head(h)


def load(n: int) -> Tensor:
    """The first characters of n texts as ASCII codes, padded with 0 on the right."""
    texts = [text for found in documentation().values() for text in found][:n]
    codes = [torch.tensor([min(ord(c), 127) for c in text[: LENGTH + 1]]) for text in texts]
    return nn.utils.rnn.pad_sequence(codes, batch_first=True, padding_value=PAD)


def main(out: Path, epochs: int = 3, n: int = 256) -> Path:
    """Train, record each text's loss and gradient norm, and show the hardest text."""
    torch.manual_seed(0)
    data, model = load(n), TinyGPT()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    loader = DataLoader(with_sample_ids(TensorDataset(data)), batch_size=16, shuffle=True)
    with Recorder(out, model, [SampleLoss(), GradNorm()]) as recorder:
        for _ in recorder.epochs(epochs):
            for tokens, sample_id in loader:
                inputs, labels = tokens[:, :-1], tokens[:, 1:]
                logits = model(inputs).transpose(1, 2)
                each = F.cross_entropy(logits, labels, reduction="none")
                losses = sequence_losses(each, labels != PAD)
                recorder.observe(losses, sample_id)
                (losses.sum() / (labels != PAD).sum()).backward()
                optimizer.step()
                optimizer.zero_grad()
    rows = open_run(out).samples()
    last = rows[rows["epoch"] == epochs - 1].set_index("sample_id")
    per_token = last["loss"] / (data[:, 1:] != PAD).sum(1).numpy()[last.index]
    hardest = int(per_token.idxmax())
    text = "".join(map(chr, data[hardest].tolist())).rstrip("\0")
    print(f"Hardest, {per_token.max():.2f} nats a character: {text!r}")
    return out


if __name__ == "__main__":
    main(Path(sys.argv[1]))
