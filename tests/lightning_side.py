"""Models with our layers and their training by Lightning's Trainer. A fixture imports this, which takes seconds."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

torch = pytest.importorskip("torch")
try:
    import lightning.pytorch as lightning
except ModuleNotFoundError:
    lightning = pytest.importorskip("pytorch_lightning")
ours = importlib.import_module("throughtime.torch")
module = importlib.import_module("throughtime.callbacks.lightning")
FlowMonitorCallback = module.FlowMonitorCallback

T, B, I, H = 30, 4, 3, 5  # noqa: E741


class Model(lightning.LightningModule):
    def __init__(self, form="tensor"):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = ours.LSTM(I, H, num_layers=2, bidirectional=True, batch_first=True, dropout=0.1)
        self.head = torch.nn.Linear(2 * H, 1)
        self.form, self.seen = form, []

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = torch.nn.functional.mse_loss(self.head(self.encoder(x)[0][:, -1]), y)
        self.seen.append(loss.item())
        self.log("loss", loss)
        return {"loss": loss} if self.form == "dict" else loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class Fails(Model):
    def training_step(self, batch, batch_idx):
        if batch_idx == 3:
            raise RuntimeError("disk full")
        return super().training_step(batch, batch_idx)


class Unwatchable(Model):
    def __init__(self):
        super().__init__()
        self.encoder = torch.nn.LSTM(I, H, bidirectional=True, batch_first=True)


class Logger(lightning.loggers.logger.Logger):
    """Keeps what it is given."""

    name, version = "kept", 0

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, params):
        pass


def fit(model, path, callbacks=(), logger=False, **options):
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.standard_normal((20 * B, T, I)), dtype=torch.float32)
    y = torch.tensor(rng.standard_normal((20 * B, 1)), dtype=torch.float32)
    batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=B)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=logger,
        default_root_dir=path,
        **quiet,
        **options,
    )
    torch.manual_seed(1)
    trainer.fit(model, batches)
    return model


def bits(model):
    return {name: value.numpy().tobytes() for name, value in model.state_dict().items()}
