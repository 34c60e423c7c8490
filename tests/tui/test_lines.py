"""Painting little: only the columns that changed are marked."""

from __future__ import annotations

import subprocess
import sys

from parallax_tui.state.cells import Cell
from parallax_tui.widgets.lines import changed_columns


def test_only_the_changed_cells_are_painted() -> None:
    before = (Cell("name  "), Cell("1.2 ms"), Cell("  ready"))
    assert changed_columns(before, before, 40) is None
    assert changed_columns(before, (before[0], Cell("1.3 ms"), before[2]), 40) == (6, 12)
    assert changed_columns(before, (before[0], Cell("1.2 ms", "warn"), before[2]), 40) == (6, 12)
    assert changed_columns(before, (before[0], Cell("11.3 ms"), before[2]), 40) == (6, 40)
    assert changed_columns((), before, 40) == (0, 40)
    assert changed_columns((Cell("ab"), Cell("c")), (Cell("a"), Cell("bd")), 40) == (0, 3)


def test_the_tui_loads_no_heavy_or_foreign_library() -> None:
    program = (
        "import sys, parallax_tui.app, parallax_tui.screens.chat, parallax_tui.screens.topology, "
        "parallax_tui.screens.starting, parallax_tui.screens.help\n"
        "heavy = {'torch', 'libp2p', 'trio', 'transformers', 'mlx', 'mlx_lm', 'sglang', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
