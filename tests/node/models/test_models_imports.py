"""Importing the room costs little, and no part of it needs torch or transformers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HEAVY = (
    "torch",
    "transformers",
    "numpy",
    "gguf",
    "tokenizers",
    "jinja2",
    "huggingface_hub",
    "trio",
    "filelock",
    "rich",
)


def loaded_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60)
    return set(out.stdout.split())


def test_importing_the_room_loads_nothing_heavy() -> None:
    assert loaded_after("import node.models, node.models.command") == set()


def test_taking_a_gguf_file_needs_neither_torch_nor_transformers(tiny_gguf: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    code = (
        "from pathlib import Path\nfrom node.models.gguf_folder import make_folder\nfrom node.models import ChatModel\n"
        f"make_folder(Path({str(tiny_gguf)!r}), Path({str(out)!r}), lambda *_: None)\n"
        f"ChatModel.load(Path({str(out)!r})).render([])"
    )
    assert loaded_after(code) == {"numpy", "tokenizers", "jinja2"}
