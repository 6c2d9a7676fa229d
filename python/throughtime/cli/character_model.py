"""The character model that `throughtime train` makes and saves: embedding, recurrent layers, Linear."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import throughtime as tt
from throughtime._files import replacing, sync
from throughtime.analysis.flow_result import GradientFlow

from .errors import fail

Array = NDArray[Any]
Recurrent = tt.RNN | tt.GRU | tt.LSTM

_EMBEDDING_SIZE = 64
_KINDS: dict[str, Any] = {"embedding": tt.Embedding, "recurrent": Recurrent, "linear": tt.Linear}
_VOCABULARY = "vocabulary.json"
FILES = (*(f"{name}.npz" for name in _KINDS), _VOCABULARY)  # the files of a saved model


@dataclass(frozen=True)
class CharacterModel:
    """Maps character ids (T, B) to logits (T, B, characters) of the next characters."""

    vocabulary: str
    embedding: tt.Embedding
    recurrent: Recurrent
    linear: tt.Linear

    @classmethod
    def new(cls, vocabulary: str, cell: str, layers: int, hidden: int, seed: int) -> CharacterModel:
        """A model with the layers' default initial weights."""
        kind = {"rnn": tt.RNN, "gru": tt.GRU, "lstm": tt.LSTM}[cell]
        return cls(
            vocabulary,
            tt.Embedding(len(vocabulary), _EMBEDDING_SIZE, seed=[seed, 0]),
            kind(_EMBEDDING_SIZE, hidden, layers, seed=[seed, 1]),
            tt.Linear(hidden, len(vocabulary), seed=[seed, 2]),
        )

    @classmethod
    def load(cls, path: Path, option: str = "") -> CharacterModel:
        """Read a saved model, or fail with a reason that names the path and the option that gave it."""
        called = f"{option} {path}".lstrip()
        parts = {name: _load_part(path / f"{name}.npz", kind, called) for name, kind in _KINDS.items()}
        try:
            vocabulary = json.loads((path / _VOCABULARY).read_text(encoding="utf-8"))
        except OSError as error:
            fail(f"{called}: {_VOCABULARY}: {error.strerror}")
        except (ValueError, RecursionError) as error:
            fail(f"{called}: {_VOCABULARY} is not JSON ({error})")
        if not isinstance(vocabulary, str) or not vocabulary:
            fail(f"{called}: {_VOCABULARY} holds no string of characters")
        model = cls(vocabulary, **parts)
        characters, size = model.embedding.parameters["weight"].shape
        found = (len(vocabulary), size, model.recurrent.output_size, model.linear.output_size)
        wanted = (characters, model.recurrent.input_size, model.linear.input_size, characters)
        if found != wanted or model.recurrent.batch_first or len({part.dtype for part in parts.values()}) > 1:
            layers = ", ".join(map(repr, parts.values()))
            fail(f"{called}: {layers} and {len(vocabulary)} characters do not fit together")
        return model

    def save(self, path: Path) -> None:
        """Write the vocabulary and the parts, as files for `tt.load`; they replace an old model only once complete."""
        path.mkdir(exist_ok=True)
        with ExitStack() as stack:
            files = {name: stack.enter_context(replacing(path / name)) for name in FILES}
            for name, layer in self.parts.items():
                layer._write(files[f"{name}.npz"])
            files[_VOCABULARY].write(json.dumps(self.vocabulary).encode())
            for file in files.values():
                sync(file)

    @property
    def parts(self) -> dict[str, Any]:
        """The layers by name."""
        return {"embedding": self.embedding, "recurrent": self.recurrent, "linear": self.linear}

    @property
    def parameters(self) -> dict[str, Array]:
        """The arrays of all parts, ``part.name``."""
        return _merged({part: layer.parameters for part, layer in self.parts.items()})

    def gradients(self, inputs: Array, targets: Array, state: Any) -> tuple[float, dict[str, Array], Any]:
        """The loss (nats) of characters (T, B), the gradient of every parameter, and the final state."""
        embedded = self.embedding.forward(inputs)
        tape = self.recurrent.forward(embedded.output, state)
        logits = self.linear.forward(tape.output)
        loss, d_logits = tt.cross_entropy(logits.output, targets)
        linear = logits.backward(d_logits)
        recurrent = tape.backward(linear.input, timesteps=())
        embedding = embedded.backward(recurrent.input)
        grads = {"embedding": embedding.parameters, "recurrent": recurrent.parameters, "linear": linear.parameters}
        return loss, _merged(grads), tape.final_state

    def write_on(self, ids: Array, length: int, temperature: float, rng: np.random.Generator) -> str:
        """Continue characters (T,) by `length` more, each drawn at this temperature; 0 takes the likeliest."""
        state, written = None, []
        for _ in range(length):
            output, state = self.recurrent(self.embedding(ids[:, None]), state)
            logits = self.linear(output[-1:])[0, 0].astype(np.float64)
            if not np.isfinite(logits).all():
                fail("the model's logits are not finite: its weights are not, or are too large", 1)
            ids = np.array([_draw(logits, temperature, rng)])
            written.append(self.vocabulary[ids[0]])
        return "".join(written)

    def loss(self, ids: Array, streams: int, window: int, most: int) -> float:
        """The mean loss (nats) on characters (N,), read in windows, as streams of at most `most` characters."""
        length = (len(ids) - 1) // streams
        inputs, targets = (ids[skip : skip + streams * length].reshape(streams, length)[:, :most].T for skip in (0, 1))
        state, total = None, 0.0
        for start in range(0, len(inputs), window):
            steps = slice(start, start + window)
            output, state = self.recurrent(self.embedding(inputs[steps]), state)
            wanted = np.ascontiguousarray(targets[steps], np.int64)
            total += tt.cross_entropy(self.linear(output), wanted)[0] * wanted.size
        return total / targets.size

    def flow(self, ids: Array) -> GradientFlow:
        """The flow through the recurrent layers for characters (T + 1, B), with a loss on the last of them only."""
        x = self.embedding(ids[:-1])
        output, _ = self.recurrent(x)
        last = self.linear.forward(output[-1])
        d_output = np.zeros_like(output)
        d_output[-1] = last.backward(_d_logits(last.output, ids[-1])).input
        return tt.gradient_flow(self.recurrent, x, d_output)

    def diagnosis(self, ids: Array) -> tt.Diagnosis:
        """The findings on the whole model, with the loss of `flow`."""
        stack = tt.Sequential(*self.parts.values())
        logits = stack(ids[:-1])
        d_logits = np.zeros_like(logits)
        d_logits[-1] = _d_logits(logits[-1], ids[-1])
        return tt.diagnose(stack, ids[:-1], d_logits)


def _d_logits(logits: Array, targets: Array) -> Array:
    """The gradient of the loss on the characters of one step."""
    return tt.cross_entropy(logits, targets.astype(np.int64))[1]


def _load_part(path: Path, kind: Any, called: str) -> Any:
    try:
        layer = tt.load(path)
    except OSError as error:
        fail(f"{called}: {path.name}: {error.strerror}")
    except ValueError as error:
        fail(f"{called}: {path.name}: {error}")
    if not isinstance(layer, kind):
        fail(f"{called}: {path.name} holds {layer!r}, which is no {path.stem} layer of a character model")
    return layer


def _draw(logits: Array, temperature: float, rng: np.random.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    with np.errstate(over="ignore"):  # a small temperature leaves the likeliest
        cumulative = np.exp((logits - logits.max()) / temperature).cumsum()
    return int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right").clip(max=len(logits) - 1))


def _merged(parts: Mapping[str, Mapping[str, Array]]) -> dict[str, Array]:
    return {f"{part}.{name}": array for part, arrays in parts.items() for name, array in arrays.items()}
