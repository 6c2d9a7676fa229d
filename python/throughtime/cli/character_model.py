"""The character model that `throughtime train` makes and saves: embedding, recurrent layers, Linear."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import throughtime as tt
from throughtime.flow_result import GradientFlow

from .output import fail

Array = NDArray[Any]
Recurrent = tt.RNN | tt.GRU | tt.LSTM

_EMBEDDING_SIZE = 64
_KINDS: dict[str, Any] = {"embedding": tt.Embedding, "recurrent": Recurrent, "linear": tt.Linear}


@dataclass(frozen=True)
class CharacterModel:
    """Character ids (T, B) in, logits (T, B, characters) of the next ones out."""

    vocabulary: str
    embedding: tt.Embedding
    recurrent: Recurrent
    linear: tt.Linear

    @classmethod
    def new(cls, vocabulary: str, cell: str, layers: int, hidden: int, seed: int) -> CharacterModel:
        """With the layers' own initial weights."""
        kind = {"rnn": tt.RNN, "gru": tt.GRU, "lstm": tt.LSTM}[cell]
        return cls(
            vocabulary,
            tt.Embedding(len(vocabulary), _EMBEDDING_SIZE, seed=[seed, 0]),
            kind(_EMBEDDING_SIZE, hidden, layers, seed=[seed, 1]),
            tt.Linear(hidden, len(vocabulary), seed=[seed, 2]),
        )

    @classmethod
    def load(cls, path: Path) -> CharacterModel:
        """Read what `save` wrote, or fail with the reason."""
        parts = {name: _load_part(path / f"{name}.npz", kind) for name, kind in _KINDS.items()}
        try:
            vocabulary = json.loads((path / "vocabulary.json").read_text(encoding="utf-8"))
        except OSError as error:
            fail(f"--model {path}: vocabulary.json: {error.strerror}")
        except ValueError as error:
            fail(f"--model {path}: vocabulary.json is not JSON ({error})")
        if not isinstance(vocabulary, str) or not vocabulary:
            fail(f"--model {path}: vocabulary.json holds no string of characters")
        model = cls(vocabulary, **parts)
        characters, size = model.embedding.parameters["weight"].shape
        found = (len(vocabulary), size, model.recurrent.output_size, model.linear.output_size)
        wanted = (characters, model.recurrent.input_size, model.linear.input_size, characters)
        if found != wanted or model.recurrent.batch_first or len({part.dtype for part in parts.values()}) > 1:
            layers = ", ".join(map(repr, parts.values()))
            fail(f"--model {path}: {layers} and {len(vocabulary)} characters do not fit together")
        return model

    def save(self, path: Path) -> None:
        """Write the parts as files that `tt.load` reads, and the vocabulary."""
        path.mkdir(exist_ok=True)
        for name, layer in self.parts.items():
            layer.save(path / f"{name}.npz")
        (path / "vocabulary.json").write_text(json.dumps(self.vocabulary), encoding="utf-8")

    @property
    def parts(self) -> dict[str, Any]:
        """The layers by name."""
        return {"embedding": self.embedding, "recurrent": self.recurrent, "linear": self.linear}

    @property
    def parameters(self) -> dict[str, Array]:
        """The arrays of all parts, ``part.name``."""
        return _merged({part: layer.parameters for part, layer in self.parts.items()})

    def gradients(self, inputs: Array, targets: Array, state: Any) -> tuple[float, dict[str, Array], Any]:
        """The loss (nats) of characters (T, B), the gradient of every parameter, and the state to go on from."""
        embedded = self.embedding.forward(inputs)
        tape = self.recurrent.forward(embedded.output, state)
        logits = self.linear.forward(tape.output)
        loss, d_logits = tt.cross_entropy(logits.output, targets)
        linear = logits.backward(d_logits)
        recurrent = tape.backward(linear.input, timesteps=())
        embedding = embedded.backward(recurrent.input)
        grads = {"embedding": embedding.parameters, "recurrent": recurrent.parameters, "linear": linear.parameters}
        return loss, _merged(grads), tape.final_state

    def flow(self, ids: Array) -> GradientFlow:
        """The flow through the recurrent layers for characters (T + 1, B), the loss on the last of them alone."""
        x = self.embedding(ids[:-1])
        output, _ = self.recurrent(x)
        last = self.linear.forward(output[-1])
        _, d_logits = tt.cross_entropy(last.output, ids[-1])
        d_output = np.zeros_like(output)
        d_output[-1] = last.backward(d_logits).input
        return tt.gradient_flow(self.recurrent, x, d_output)


def _load_part(path: Path, kind: Any) -> Any:
    try:
        layer = tt.load(path)
    except OSError as error:
        fail(f"--model {path.parent}: {path.name}: {error.strerror}")
    except ValueError as error:
        fail(f"--model {path.parent}: {path.name}: {error}")
    if not isinstance(layer, kind):
        fail(f"--model {path.parent}: {path.name} holds {layer!r}, which is no {path.stem} layer of a character model")
    return layer


def _merged(parts: Mapping[str, Mapping[str, Array]]) -> dict[str, Array]:
    return {f"{part}.{name}": array for part, arrays in parts.items() for name, array in arrays.items()}
