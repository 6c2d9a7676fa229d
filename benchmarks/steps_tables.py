"""Write the tables of whole steps into README.md and docs/performance.md, from the JSON of a run:

    throughtime bench --step --json benchmarks/results/NAME.json
    python benchmarks/steps_tables.py benchmarks/results/NAME.json

Each table is between the lines `<!-- steps -->` and `<!-- /steps -->`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- steps -->\n", "<!-- /steps -->"
MODULES, NUMPY, TORCH = "throughtime.torch", "throughtime", "torch"
NAMES = {TORCH: "`torch.nn`", MODULES: "`throughtime.torch`", NUMPY: "NumPy API", "torch-compile": "`torch.compile`"}


def main(path: Path) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    for name, rows in (("README.md", short_table(data)), ("docs/performance.md", long_table(data))):
        page = ROOT / name
        text = page.read_text(encoding="utf-8")
        written = "\n".join([about(data, path), "", *rows, ""])
        before, begin, rest = text.partition(BEGIN)
        _, end, after = rest.partition(END)
        page.write_text(before + begin + written + end + after, encoding="utf-8")


def about(data: dict[str, Any], path: Path) -> str:
    """Machine, threads and versions; a warning first if the machine was busy."""
    machine, versions, threads = data["machine"], data["versions"], data["threads"]
    busy = f"**Measured on a busy machine ({'; '.join(machine['busy'])}), so provisional.** " if machine["busy"] else ""
    return (
        f"{busy}{machine['cpu']}, {machine['cores']} cores, {machine['instruction_set']}; {threads} "
        f"thread{'s' if threads > 1 else ''}; torch {versions['torch']}; medians of {data['rounds']} rounds; "
        f"`{path.name}`."
    )


def short_table(data: dict[str, Any]) -> list[str]:
    """A line per problem: samples per second and ratios for both cells."""
    columns = ["samples/s", "times `torch.nn`", "NumPy API"]
    rows = [
        f"| problem | T | B | I | H | LSTM: {' | '.join(columns)} | GRU: {' | '.join(columns)} |",
        "|---" * (5 + 2 * len(columns)) + "|",
    ]
    for name in dict.fromkeys(found["problem"] for found in data["results"]):
        cells = {found["cell"]: found for found in data["results"] if found["problem"] == name}
        sizes = next(iter(cells.values()))["sizes"]
        values = [value for cell in ("LSTM", "GRU") for value in short_cells(cells.get(cell))]
        rows.append(f"| {name} | {' | '.join(str(sizes[size]) for size in 'TBIH')} | {' | '.join(values)} |")
    return rows


def short_cells(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return [""] * 3
    rate = found["contenders"][MODULES]["samples_per_second"]
    return [number(rate), *(number(found["ratios"][name]["median"]) for name in (MODULES, NUMPY))]


def long_table(data: dict[str, Any]) -> list[str]:
    """A line per problem, cell and contender."""
    columns = [
        "problem",
        "cell",
        "contender",
        "ms a step",
        "samples/s",
        "times `torch.nn`",
        "lowest, highest",
        "peak MB",
    ]
    rows = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for found in data["results"]:
        for name, outcome in found["contenders"].items():
            ratio = found["ratios"].get(name) or {"median": None}
            spread = f"{number(ratio['lowest'])}, {number(ratio['highest'])}" if ratio["median"] else ""
            values = [
                number(outcome["median_seconds"], 1e3) or outcome["failed"] or outcome["wrong"] or "",
                number(outcome["samples_per_second"]),
                number(ratio["median"]),
                spread,
                number(outcome["peak_memory_bytes"], 1e-6),
            ]
            rows.append(f"| {found['problem']} | {found['cell']} | {NAMES[name]} | {' | '.join(values)} |")
    return rows


def number(value: float | None, factor: float = 1) -> str:
    """Three or more digits; blank if there is no number."""
    if value is None:
        return ""
    scaled = value * factor
    return format(scaled, ".0f" if scaled >= 100 else ".1f" if scaled >= 10 else ".2f")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
