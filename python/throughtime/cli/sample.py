"""`throughtime sample`: continue a prompt with a trained character model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from .character_model import CharacterModel
from .errors import fail
from .options import check_finite
from .output import Output, say


def sample(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A model from `throughtime train --save DIR`.")],
    prompt: Annotated[
        str, typer.Option(help="Beginning of the text.", show_default="none: the model starts as if on a new line")
    ] = "",
    length: Annotated[int, typer.Option(min=0, help="Characters to write after the prompt.")] = 400,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest character.")] = 0.7,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random choices.")] = 0,
) -> None:
    """Print a prompt and its continuation by a trained character model."""
    check_finite({"--temperature": temperature})
    model = CharacterModel.load(directory)
    number = {character: index for index, character in enumerate(model.vocabulary)}
    strange = sorted(set(prompt) - number.keys())
    if strange:
        fail(f"--prompt: the model does not know {', '.join(map(repr, strange))}")
    first = [number[character] for character in prompt] or [number.get("\n", 0)]
    written = model.write_on(np.array(first), length, temperature, np.random.default_rng(seed))
    say(Output(), prompt + written, keep="\n\t")
