"""What the machine says about itself, and a container's limit that is lower."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.engine import machine
from node.engine.measure import BUDGET_S, best_s, measure


def cgroups(tmp_path: Path, own: str, limits: dict[str, str]) -> int | None:
    own_file = tmp_path / "own"
    own_file.write_text(own)
    for path, limit in limits.items():
        file = tmp_path / "root" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(limit)
    return machine.cgroup_limit_bytes(tmp_path / "root", own_file)


def test_a_container_of_version_2_is_limited_by_its_own_group(tmp_path: Path) -> None:
    assert cgroups(tmp_path, "0::/\n", {"memory.max": "1000\n"}) == 1000


def test_a_limit_binds_what_lies_below_it(tmp_path: Path) -> None:
    limits = {"a/memory.max": "500\n", "a/b/memory.max": "max\n", "c/memory.max": "1\n"}
    assert cgroups(tmp_path, "0::/a/b\n", limits) == 500


def test_version_1_names_its_controller(tmp_path: Path) -> None:
    own = "9:cpu,cpuacct:/x\n5:memory:/docker/abc\n"
    assert cgroups(tmp_path, own, {"memory/docker/abc/memory.limit_in_bytes": "700\n"}) == 700


def test_without_limits_or_control_groups_there_is_none(tmp_path: Path) -> None:
    assert cgroups(tmp_path, "0::/a\n", {"a/memory.max": "max\n"}) is None
    assert machine.cgroup_limit_bytes(tmp_path, tmp_path / "absent") is None


def timed(*runs_s: float) -> tuple[float, int]:
    """What is measured of runs that take so long, the last of them again and again; and how many there were."""
    now_s, count = 0.0, 0

    def work() -> None:
        nonlocal now_s, count
        now_s += runs_s[min(count, len(runs_s) - 1)]
        count += 1

    return best_s(work, lambda: now_s), count


def test_the_best_of_the_runs_that_fit_the_budget_counts() -> None:
    best, runs = timed(0.2, 0.05, 0.1)
    assert best == pytest.approx(0.05)
    assert runs == 4


def test_a_machine_that_is_slow_or_busy_is_measured_by_one_run() -> None:
    assert timed(10 * BUDGET_S) == (10 * BUDGET_S, 1)


def test_this_processor_is_measured_as_what_it_is() -> None:
    hardware = measure("cpu")
    assert hardware.device == "cpu"
    assert hardware.device_name == machine.processor_name() != ""
    assert 2**28 < hardware.memory_bytes <= machine.memory_bytes()
    assert hardware.cores == machine.core_count() >= 1
    assert 1e8 < hardware.bandwidth_bytes_per_s < 1e13
    assert 1e8 < hardware.matmul_flops_per_s < 1e16
