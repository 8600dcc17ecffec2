"""One training, in the loops of four libraries: same data, model, order, optimiser and epochs."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Sampler

from probes import GradNorm, Recorder, SampleLoss, with_sample_ids

N, D, C, SIZE, EPOCHS = 22, 5, 3, 4, 3
X = torch.randn(N, D, generator=torch.Generator().manual_seed(1))
Y = torch.arange(N) % C


class Items(Dataset):
    """Pairs, or mappings as transformers wants them."""

    def __init__(self, as_mapping=False):
        self.as_mapping = as_mapping

    def __len__(self):
        return N

    def __getitem__(self, i):
        return {"inputs": X[i], "labels": Y[i]} if self.as_mapping else (X[i], Y[i])


class Shuffled(Sampler):
    """A new order each time, the same in every library."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(7)

    def __len__(self):
        return N

    def __iter__(self):
        yield from torch.randperm(N, generator=self.generator).tolist()


def make_network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(D, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, C))


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def make_recorder(folder, network, **options):
    probes = [SampleLoss(), GradNorm()]
    return Recorder(folder, network, probes, roster={"label": Y.tolist()}, **options)


def make_loader():
    return DataLoader(with_sample_ids(Items()), batch_size=SIZE, sampler=Shuffled())


def train_plainly(folder):
    """The loop of the README; without a folder it is not recorded."""
    model = make_network()
    optimizer, loader = make_optimizer(model), make_loader()

    def run(recorder=None):
        for _ in range(EPOCHS) if recorder is None else recorder.epochs(EPOCHS):
            for x, y, sample_id in loader:
                logits = model(x)
                losses = F.cross_entropy(logits, y, reduction="none")
                if recorder is not None:
                    recorder.observe(losses, sample_id, logits=logits, labels=y)
                losses.mean().backward()
                optimizer.step()
                optimizer.zero_grad()

    torch.manual_seed(5)
    if folder is None:
        run()
    else:
        with make_recorder(folder, model) as recorder:
            run(recorder)
    return model
