"""The Trainer: the same trace as the plain loop, losses per sequence, ids and restarts."""

import json

import numpy as np
import pytest
import torch
from loops import (
    EPOCHS,
    SIZE,
    Items,
    N,
    Shuffled,
    Y,
    make_network,
    make_optimizer,
    make_recorder,
    train_plainly,
)
from test_probes_integrations_lightning import same_rows
from torch import nn
from torch.nn import functional as F

from dynamics import open_run
from probes import GradNorm, Recorder, SampleLoss, with_sample_ids

transformers = pytest.importorskip("transformers")
datasets = pytest.importorskip("datasets")
from probes.integrations.transformers import RecordingTrainer  # noqa: E402 (after the skip)


class Net(nn.Module):
    """The network of the plain loop, as a Trainer wants it."""

    def __init__(self):
        super().__init__()
        self.net = make_network()

    def forward(self, inputs, labels=None):
        logits = self.net(inputs)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class FixedOrder:
    def _get_train_sampler(self, *arguments):
        if not hasattr(self, "order"):
            self.order = Shuffled()
        return self.order


class Ordered(FixedOrder, RecordingTrainer):
    pass


class Plain(FixedOrder, transformers.Trainer):
    pass


def arguments(folder, **options):
    settings = {
        "output_dir": str(folder / "out"),
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": SIZE,
        "max_grad_norm": 0,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": 5,
    }
    return transformers.TrainingArguments(**settings | options)


def fit(kind, folder, model, data=None, resume=None, **options):
    arguments_ = arguments(folder, **options.pop("settings", {}))
    optimizer = make_optimizer(model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    trainer = kind(
        model=model,
        args=arguments_,
        train_dataset=data or with_sample_ids(Items(as_mapping=True)),
        optimizers=(optimizer, schedule),
        **options,
    )
    torch.manual_seed(5)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_the_trace_is_that_of_the_plain_loop_and_training_is_bit_identical(tmp_path):
    model = Net()
    fit(Ordered, tmp_path, model, recorder=make_recorder(tmp_path / "trainer", model.net))
    plain = train_plainly(tmp_path / "plain")
    run = open_run(tmp_path / "trainer")
    same_rows(run.samples(), open_run(tmp_path / "plain").samples())
    assert run.ended_cleanly
    assert run.events()["name"].tolist() == ["epoch_end"] * EPOCHS
    unrecorded = Net()
    fit(Plain, tmp_path, unrecorded, Items(as_mapping=True))
    for parameters in (unrecorded.net.parameters(), plain.parameters()):
        pairs = zip(model.net.parameters(), parameters, strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


# A causal language model, padded

T, VOCABULARY = 7, 11


def make_language_model():
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=T, n_embd=8, n_layer=1, n_head=2,
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return transformers.GPT2LMHeadModel(config)


def make_texts():
    generator = torch.Generator().manual_seed(4)
    lengths = [T - i % 4 for i in range(8)]
    tokens = torch.randint(1, VOCABULARY, (8, T), generator=generator)
    real = torch.arange(T) < torch.tensor(lengths).unsqueeze(1)
    columns = {
        "input_ids": torch.where(real, tokens, 0).tolist(),
        "attention_mask": real.long().tolist(),
        "labels": torch.where(real, tokens, -100).tolist(),
        "position_ids": [list(range(T))] * 8,
    }
    return datasets.Dataset.from_dict(columns)


def loss_alone(model, item):
    """Negative log-likelihood of one sequence without its padding, by itself."""
    n = sum(item["attention_mask"])
    tokens = torch.tensor([item["input_ids"][:n]])
    return F.cross_entropy(model(tokens).logits[0, :-1], tokens[0, 1:], reduction="sum")


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_causal_model_over_padded_texts(accumulation, tmp_path):
    model, texts = make_language_model(), make_texts()
    settings = {"gradient_accumulation_steps": accumulation, "num_train_epochs": 1}
    recorder = Recorder(tmp_path / "run", model, [SampleLoss(), GradNorm()])
    fit(Ordered2, tmp_path, model, with_sample_ids(texts), recorder=recorder, settings=settings)
    rows = open_run(tmp_path / "run").samples()
    assert rows["sample_id"].tolist() == list(range(8))
    reference = make_language_model()
    for row in rows[rows["step"] == 0].itertuples():
        loss = loss_alone(reference, texts[row.sample_id])
        assert row.loss == pytest.approx(loss.item(), rel=1e-5)
        gradients = torch.autograd.grad(loss, list(reference.parameters()))
        norm = sum(g.square().sum() for g in gradients).sqrt()
        assert row.grad_norm == pytest.approx(norm.item(), rel=1e-4)
    other = make_language_model()
    fit(InOrder, tmp_path, other, texts, settings=settings)
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


class InOrder(transformers.Trainer):
    def _get_train_sampler(self, *arguments):
        return torch.utils.data.SequentialSampler(self.train_dataset)


class Ordered2(RecordingTrainer):
    _get_train_sampler = InOrder._get_train_sampler


# What is refused, and restarts


def test_a_column_that_was_dropped_is_missed_before_training(tmp_path):
    model = make_language_model()
    recorder = Recorder(tmp_path / "run", model, [SampleLoss()])
    with pytest.raises(ValueError, match=r"no column sample_id.*with_sample_ids\(train_set\)"):
        fit(Ordered2, tmp_path, model, make_texts(), recorder=recorder)


def test_a_collator_that_drops_the_ids_is_told_how_not_to(tmp_path):
    model = Net()

    def collate(items):
        return {key: torch.stack([item[key] for item in items]) for key in ("inputs", "labels")}

    recorder = make_recorder(tmp_path / "run", model.net)
    with pytest.raises(ValueError, match=r"no sample_id.*data_collator.*batch\['sample_id'\]"):
        fit(Ordered, tmp_path, model, recorder=recorder, data_collator=collate)


class Penalised(Net):
    def forward(self, inputs, labels=None):
        output = super().forward(inputs, labels)
        return output | {"loss": output["loss"] + self.net[0].weight.square().sum()}


def test_a_loss_with_another_term_is_refused_at_the_first_batch(tmp_path):
    model = Penalised()
    recorder = make_recorder(tmp_path / "run", model.net)
    with pytest.raises(ValueError, match=r"add up to .* trains on .*losses_of\(outputs, labels\)"):
        fit(Ordered, tmp_path, model, recorder=recorder)


def test_evaluation_is_not_recorded_and_its_inputs_have_no_ids(tmp_path):
    model = Net()
    recorder = make_recorder(tmp_path / "run", model.net)
    data = with_sample_ids(Items(as_mapping=True))
    settings = {"eval_strategy": "epoch", "num_train_epochs": 1}
    trainer = fit(
        Ordered, tmp_path, model, data, recorder=recorder, eval_dataset=data, settings=settings
    )
    assert np.isfinite(trainer.evaluate(data)["eval_loss"])
    assert len(open_run(tmp_path / "run").samples(repeats=True)) == N


class Stop(transformers.TrainerCallback):
    def on_step_begin(self, args, state, control, **rest):
        if state.global_step == 8:
            raise RuntimeError("the loop broke")


def test_resumed_from_a_checkpoint(tmp_path):
    settings = {"save_strategy": "epoch"}
    model = Net()
    recorder = make_recorder(tmp_path / "run", model.net)
    with pytest.raises(RuntimeError):
        fit(Ordered, tmp_path, model, recorder=recorder, callbacks=[Stop()], settings=settings)
    checkpoint = tmp_path / "out" / "checkpoint-6"
    assert json.loads((checkpoint / "recorder.json").read_text())["step"] == 6
    model = Net()
    recorder = make_recorder(tmp_path / "run", model.net, resume=True)
    fit(Ordered, tmp_path, model, recorder=recorder, resume=True, settings=settings)
    run = open_run(tmp_path / "run")
    assert [attempt.from_step for attempt in run.attempts] == [0, 6]
    rows = run.samples()
    keys = list(zip(rows["epoch"], rows["sample_id"], strict=True))
    assert keys == [(e, i) for e in range(EPOCHS) for i in range(N)]
    assert run.ended_cleanly
    assert run.roster()["label"].tolist() == Y.tolist()
    (checkpoint / "recorder.json").unlink()
    recorder = make_recorder(tmp_path / "run", model.net, resume=True)
    with pytest.raises(ValueError, match=r"recorder.json is missing.*earlier"):
        fit(Ordered, tmp_path, model, recorder=recorder, resume=str(checkpoint), settings=settings)
