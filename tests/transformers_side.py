"""Models with our layers and their training by transformers' Trainer. A fixture imports this, which takes seconds."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
ours = importlib.import_module("throughtime.torch")
module = importlib.import_module("throughtime.callbacks.transformers")
FlowMonitorCallback = module.FlowMonitorCallback

T, B, I, H = 30, 4, 3, 5  # noqa: E741


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = ours.LSTM(I, H, num_layers=2, batch_first=True, dropout=0.1)
        self.decoder = ours.GRU(H, H, batch_first=True)
        self.head = torch.nn.Linear(H, 1)
        self.seen = []

    def forward(self, x, labels):
        logits = self.head(self.decoder(self.encoder(x)[0])[0][:, -1])
        loss = torch.nn.functional.mse_loss(logits, labels)
        if self.training:
            self.seen.append(loss.item())
        return {"loss": loss, "logits": logits}


class Fails(Model):
    def forward(self, x, labels):
        if len(self.seen) == 3:
            raise RuntimeError("disk full")
        return super().forward(x, labels)


def trainer_of(model, path, callback=None, **options):
    rng = np.random.default_rng(0)
    rows = [
        {"x": torch.tensor(x, dtype=torch.float32), "labels": torch.tensor(y, dtype=torch.float32)}
        for x, y in zip(rng.standard_normal((20 * B, T, I)), rng.standard_normal((20 * B, 1)), strict=True)
    ]
    arguments = transformers.TrainingArguments(
        output_dir=str(path),
        per_device_train_batch_size=B,
        num_train_epochs=1,
        report_to=[],
        save_strategy="no",
        logging_strategy="steps",
        logging_steps=1,
        use_cpu=True,
        disable_tqdm=True,
        **options,
    )
    return transformers.Trainer(model, arguments, train_dataset=rows, callbacks=[callback] if callback else None)


def bits(model):
    return {name: value.numpy().tobytes() for name, value in model.state_dict().items()}
