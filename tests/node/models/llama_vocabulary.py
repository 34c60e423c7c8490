"""llama.cpp's own tokenisation of a GGUF file's vocabulary, from the wheel that holds its libraries.

In a process of its own, since llama.cpp ends the process where a vocabulary is not to its liking:

    python llama_vocabulary.py FILE      texts as JSON strings on stdin, ids as JSON lists on stdout, line by line
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

TOKENIZE = "int32_t llama_tokenize(void *, const char *, int32_t, int32_t *, int32_t, bool, bool);"


class LlamaVocabulary:
    """A process that has loaded the vocabulary alone. Ends with the block."""

    def __init__(self, path: Path) -> None:
        command = [sys.executable, "-m", "tests.node.models.llama_vocabulary", str(path)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ids(self, text: str) -> list[int]:
        """Token ids; texts of control tokens are those tokens, and the begin token comes first if that is the habit."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(text) + "\n")
        self._process.stdin.flush()
        return list(json.loads(self._process.stdout.readline()))

    def __enter__(self) -> LlamaVocabulary:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


def main(path: str) -> None:
    from node.engine.llamacpp.library import open_library

    library = open_library()
    library.load_processor()
    ffi, llama = library.ffi, library.llama
    ffi.cdef(TOKENIZE, override=True)
    params = llama.llama_model_default_params()
    params.vocab_only = True
    model = llama.llama_model_load_from_file(path.encode(), params)
    assert model != ffi.NULL, library.log.last_error()
    vocabulary = llama.llama_model_get_vocab(model)
    for line in sys.stdin:
        data = json.loads(line).encode()
        room = ffi.new("int32_t[]", len(data) + 8)
        count = llama.llama_tokenize(vocabulary, data, len(data), room, len(data) + 8, True, True)
        print(json.dumps(list(room[0:count])), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
