"""The engine's README tells truly which family runs on which stage from which kind of file."""

from __future__ import annotations

import pytest

from node.engine.backend import BACKENDS
from node.engine.base import BackendName
from tests.node.engine.family_table import COLUMNS, FAMILIES, llamacpp_outcome, outcome, told


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("backend", "source"), COLUMNS)
def test_what_the_readme_says_of_a_family_is_so(family: str, backend: BackendName, source: str) -> None:
    row = BACKENDS[backend]
    if not row.is_installed:
        pytest.skip(f"{backend} is not installed: {row.how_to_install}")
    assert outcome(family, backend, source) == told()[family, f"{backend}, {source}"]


def test_it_says_of_every_family_what_llama_cpp_does() -> None:
    said = told()
    assert {family for family, _ in said} == set(FAMILIES)
    assert {family: llamacpp_outcome(family) for family in FAMILIES} == {
        family: said[family, "llamacpp, GGUF"] for family in FAMILIES
    }
