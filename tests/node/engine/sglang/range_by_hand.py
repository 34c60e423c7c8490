"""A range on SGLang against transformers, by hand, under an interpreter that has SGLang:

    PYTHONPATH=. PYTHON tests/node/engine/sglang/range_by_hand.py FOLDER START END

Two sequences: prompts in one batch, then steps side by side, then a draft of one beside a step of the other.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import torch

CPU_STUBS = "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
"""A torchvision made for CUDA asks for these when it is imported beside a torch for processors."""
IDS = {"a": [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47], "b": [504, 3575, 282, 4649, 314]}
STEPS, DRAFT = 3, 2
OFF = 2e-3
"""Of the numbers' size: float32, other kernels."""


def main(folder: str, start: int, end: int) -> None:
    if not torch.cuda.is_available():
        library = torch.library.Library("torchvision", "DEF")
        library.define(CPU_STUBS)
        library.define(CPU_STUBS.replace("nms", "qnms", 1))
    from transformers import AutoModelForCausalLM

    from node.engine.base import Batch, Slot, StageSpec
    from node.engine.sglang.backend import SglangBackend
    from node.wire.frames import Sampling

    device = "cuda" if torch.cuda.is_available() else "cpu"
    reference: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    layers = reference.config.num_hidden_layers
    progress = SglangBackend(device).load(StageSpec(folder, start, end, "float32", 1 << 28, "sglang"))
    try:
        while True:
            next(progress)
    except StopIteration as finished:
        stage = finished.value
    print(stage.info)

    total = {name: ids + [10 + step for step in range(STEPS + DRAFT)] for name, ids in IDS.items()}
    with torch.inference_mode():
        made = {
            name: reference(torch.tensor([ids]), output_hidden_states=True).hidden_states for name, ids in total.items()
        }
        tokens = {name: reference(torch.tensor([ids])).logits[0].argmax(-1).tolist() for name, ids in total.items()}
    first, last = start == 0, end == layers
    for name in total:
        stage.open(name, start, end, Sampling() if last else None, len(total[name]))

    def step(slots: list[tuple[str, int, int, str]]) -> None:
        if first:
            ids = [token for name, at, count, _ in slots for token in total[name][at : at + count]]
            data: Any = struct.pack(f"<{len(ids)}i", *ids)
        else:
            rows = torch.cat([made[name][start][0, at : at + count] for name, at, count, _ in slots])
            data = rows.contiguous().numpy().tobytes()
        batch = Batch(tuple(Slot(*slot) for slot in slots), data, None if first else "float32")  # type: ignore[arg-type]
        result = stage.run(batch)
        assert not any(slot.problem for slot in result.slots), result.slots
        if last:
            for (name, at, count, want), slot in zip(slots, result.slots, strict=True):
                expected = (
                    tokens[name][at : at + count] if want == "each" else tokens[name][at + count - 1 : at + count]
                )
                assert list(slot.tokens) == expected, (name, at, slot.tokens, expected)
            return
        given = torch.frombuffer(bytearray(result.data), dtype=torch.float32).view(-1, stage.info.hidden_size)
        expected = torch.cat([made[name][end][0, at : at + count] for name, at, count, _ in slots])
        off = float((given - expected).abs().max() / expected.abs().max())
        print(f"{slots}: off by {off:.1e}")
        assert off < OFF

    want = "token" if last else "nothing"
    step([(name, 0, len(ids), want) for name, ids in IDS.items()])
    for number in range(STEPS):
        step([(name, len(ids) + number, 1, want) for name, ids in IDS.items()])
    at = {name: len(ids) + STEPS for name, ids in IDS.items()}
    step([("a", at["a"], DRAFT, "each" if last else "nothing"), ("b", at["b"], 1, want)])
    stage.rewind("a", at["a"])
    step([("a", at["a"], 1, want)])
    stage.close("a")
    print(f"layers {start} to {end - 1} of {Path(folder).name}: as transformers has them, on {device}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
