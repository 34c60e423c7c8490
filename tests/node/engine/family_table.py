"""Which family runs on which stage from which kind of file: tried with tiny random models, and told in the engine's
README. `python -m tests.node.engine.family_table` writes the table anew, where all of the stages are installed.

A cell is `yes` where the stage gives transformers' next tokens, else the number of the sentence that refuses it.
llama.cpp is tried by tests of its own, since it wants more of a GGUF file than weights; SGLang by hand, where it is
installed.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from node.engine.backend import BACKENDS
from node.engine.base import BackendName, StageSpec
from node.errors import EngineError
from node.wire.frames import Sampling
from tests.node.engine.driving import KV_BYTES, batch_of
from tests.node.engine.llamacpp.test_llamacpp_families import CASES
from tests.node.weights.small_models import ARCHITECTURES, CONFIGS, LAYERS, MODEL_ARCH_NAMES, make_model, write_gguf_of

README = Path(__file__).parents[3] / "node" / "engine" / "README.md"
BEGIN, END = "<!-- families: begin -->", "<!-- families: end -->"

COLUMNS: list[tuple[BackendName, str]] = [
    ("torch", "safetensors"),
    ("torch", "GGUF"),
    ("ort", "safetensors"),
    ("ort", "GGUF"),
    ("mlx", "safetensors"),
    ("mlx", "GGUF"),
]
FAMILIES = [name for name in CONFIGS if "tied" not in name]
PROMPT, STEPS = [3, 41, 5, 92, 17, 60, 33, 8, 19], 3

SGLANG_BY_HAND = {"llama"}
SGLANG_NOT = "SGLang: not tried; what it has for pipelines can be split"


def outcome(family: str, backend: BackendName, source: str) -> str:
    """`yes`, or the sentence that refuses it. Needs the backend to be installed."""
    model = make_model(family)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if source == "GGUF":
            model.config.save_pretrained(folder)
            write_gguf_of(model, folder / "model.gguf", "F32")
        else:
            model.save_pretrained(folder)
        try:
            given = tokens(folder, backend)
        except EngineError as error:
            return sentence(str(error), folder)
    return "yes" if given == expected(model) else "gives other tokens than transformers"


def tokens(folder: Path, backend: BackendName) -> list[int]:
    """What a stage over the whole model gives after a prompt, step by step."""
    row = BACKENDS[backend]
    if not (suits := row.suits(folder, "cpu", "none")).rank:
        raise EngineError(suits.why_not)
    progress = row.open("cpu").load(StageSpec(str(folder), 0, LAYERS, "float32", KV_BYTES, backend, "none"))
    while True:
        try:
            next(progress)
        except StopIteration as finished:
            stage: Any = finished.value
            break
    stage.open("s", 0, LAYERS, Sampling(), len(PROMPT) + STEPS)
    answer: list[int] = []
    waiting, position = PROMPT, 0
    for _ in range(STEPS):
        (slot,) = stage.run(batch_of(("s", position, waiting, "token"))).slots
        if slot.problem:
            raise EngineError(slot.problem)
        position, waiting = position + len(waiting), list(slot.tokens)
        answer += slot.tokens
    stage.drop()
    return answer


def expected(model: Any) -> list[int]:
    """transformers' own."""
    ids = list(PROMPT)
    with torch.inference_mode():
        for _ in range(STEPS):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(PROMPT) :]


def sentence(text: str, folder: Path) -> str:
    """A refusal without what differs from run to run, and without the list of what would be taken instead."""
    text = re.sub(r"(; supported: |, which reads those of ).*", "", text)
    text = text.replace(f"{folder}/", "").replace(str(folder), "the folder")
    return re.sub(r"^could not load layers [^:]*: ", "", text)


def llamacpp_outcome(family: str) -> str:
    """As the tests of that stage have it."""
    architecture = MODEL_ARCH_NAMES[ARCHITECTURES[make_config(family)]]
    tried = {made for made, _ in CASES.values()}
    return "yes" if architecture in tried else f"llama.cpp: {architecture} is not tried"


def make_config(family: str) -> str:
    """A family's `model_type`."""
    return str(CONFIGS[family]().model_type)


def markdown(cell: Callable[[str, BackendName, str], str]) -> str:
    """The table, and the sentences that it numbers."""
    heads = [*(f"{backend}, {source}" for backend, source in COLUMNS), "llamacpp, GGUF", "sglang, safetensors"]
    lines = [f"| family | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    said: list[str] = []
    for family in FAMILIES:
        found = [cell(family, backend, source) for backend, source in COLUMNS]
        found += [llamacpp_outcome(family), "by hand" if family in SGLANG_BY_HAND else SGLANG_NOT]
        for text in found:
            if text not in ("yes", "by hand") and text not in said:
                said.append(text)
        cells = [text if text in ("yes", "by hand") else f"({said.index(text) + 1})" for text in found]
        lines.append(f"| {family} | {' | '.join(cells)} |")
    lines.append("")
    lines += [f"{number}. {text}" for number, text in enumerate(said, 1)]
    return "\n".join(lines)


def told() -> dict[tuple[str, str], str]:
    """What the README says: `yes`, `by hand` or a sentence by family and column."""
    text = README.read_text()
    block = text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines() if line[:1] == "|"]
    said = dict(re.findall(r"^(\d+)\. (.*)$", block, re.MULTILINE))
    heads, body = rows[0][1:], rows[2:]
    return {
        (family, head): said[cell.strip("()")] if cell.startswith("(") else cell
        for family, *cells in body
        for head, cell in zip(heads, cells, strict=True)
    }


def main() -> None:
    """Write the table into the README."""
    text = README.read_text()
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    README.write_text(f"{text[:start]}\n{markdown(outcome)}\n{text[end:]}")


if __name__ == "__main__":
    main()
