"""A container's limit counts, wherever in the tree of control groups it stands."""

from pathlib import Path

import psutil
import pytest

from autotune.execute.limits import LEAST_PROCESSES, SHARE_OF_MEMORY, Limits, most_processes
from autotune.runtime.host_memory import HostMemory

MIB = 2**20
NONE_OF_V1 = 9223372036854771712
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = ("memory.max", "memory.current", "inactive_file")


def group(folder: Path, names: tuple[str, str, str], limit: object, used: int = 0, inactive: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in zip(names[:2], (limit, used), strict=True):
        (folder / name).write_text(f"{value}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{names[2]} {inactive}\ninactive_file_of_others 7\n")


def process(folder: Path, membership: str, *mounts: tuple[str, Path, str]) -> Path:
    """A folder as Linux describes a process in: its groups, and (root, place, kind and options) of what is mounted."""
    (folder / "cgroup").write_text(membership)
    lines = [
        f"35 31 0:{number} {root} {str(place).replace(' ', chr(92) + '040')} rw,relatime shared:9 - {kind}"
        for number, (root, place, kind) in enumerate(mounts)
    ]
    (folder / "mountinfo").write_text("\n".join(["23 1 0:9 / / rw - ext4 /dev/sda rw", *lines]))
    return folder


V2_MOUNTED, V1_MOUNTED = "cgroup2 cgroup2 rw", "cgroup cgroup rw,memory"


def test_a_limit_of_version_2_counts_less_what_is_used_and_not_what_is_cached(tmp_path):
    group(tmp_path / "sys fs/pod/own", V2, 100 * MIB, 60 * MIB, 20 * MIB)
    on = process(tmp_path, "0::/pod/own\n", ("/", tmp_path / "sys fs", V2_MOUNTED))
    assert HostMemory.read(on) == HostMemory(total_bytes=100 * MIB, available_bytes=60 * MIB)


@pytest.mark.parametrize(
    ("own", "above", "total", "available"), [(80, 50, 50, 40), (50, 80, 50, 45), ("max", 80, 80, 70)]
)
def test_the_smallest_limit_of_all_that_stand_above_counts(tmp_path, own, above, total, available):
    group(tmp_path / "fs/pod/own", V2, own if own == "max" else own * MIB, 5 * MIB)
    group(tmp_path / "fs/pod", V2, above * MIB, 10 * MIB)
    on = process(tmp_path, "0::/pod/own\n", ("/", tmp_path / "fs", V2_MOUNTED))
    assert HostMemory.read(on) == HostMemory(total_bytes=total * MIB, available_bytes=available * MIB)


def test_total_and_what_is_left_may_come_from_two_groups(tmp_path):
    group(tmp_path / "fs/pod/own", V2, 50 * MIB, 5 * MIB)
    group(tmp_path / "fs/pod", V2, 80 * MIB, 60 * MIB)
    on = process(tmp_path, "0::/pod/own\n", ("/", tmp_path / "fs", V2_MOUNTED))
    assert HostMemory.read(on) == HostMemory(total_bytes=50 * MIB, available_bytes=20 * MIB)


def test_version_1_is_read_where_memory_is_with_it(tmp_path):
    group(tmp_path / "memory/box", V1, 100 * MIB, 30 * MIB, 10 * MIB)
    group(tmp_path / "memory", V1, NONE_OF_V1, 10**9)
    group(tmp_path / "cpu/box", V1, MIB)
    on = process(
        tmp_path,
        "3:cpu,cpuacct:/box\n2:memory:/box\n0::/\n",
        ("/", tmp_path / "cpu", "cgroup cgroup rw,cpu,cpuacct"),
        ("/", tmp_path / "memory", V1_MOUNTED),
        ("/", tmp_path / "unified", V2_MOUNTED),
    )
    assert HostMemory.read(on) == HostMemory(total_bytes=100 * MIB, available_bytes=80 * MIB)


@pytest.mark.parametrize(
    ("path", "root"), [("/docker/abc", "/docker/abc"), ("/../abc", "/"), ("/elsewhere", "/docker/abc")]
)
def test_a_container_sees_its_own_group_at_the_top(tmp_path, path, root):
    group(tmp_path / "fs", V2, 100 * MIB)
    on = process(tmp_path, f"0::{path}\n", (root, tmp_path / "fs", V2_MOUNTED))
    assert HostMemory.read(on).total_bytes == 100 * MIB


def test_more_used_than_there_may_be_leaves_nothing(tmp_path):
    group(tmp_path / "fs", V2, 10 * MIB, 30 * MIB)
    assert HostMemory.read(process(tmp_path, "0::/\n", ("/", tmp_path / "fs", V2_MOUNTED))).available_bytes == 0


@pytest.mark.parametrize("limit", ["max", NONE_OF_V1, "", "5 MiB"])
def test_without_a_limit_the_host_counts(tmp_path, limit):
    group(tmp_path / "fs", V2, limit)
    on = process(tmp_path, "0::/\n", ("/", tmp_path / "fs", V2_MOUNTED))
    assert HostMemory.read(on).total_bytes == psutil.virtual_memory().total


def test_without_control_groups_the_host_counts(tmp_path):
    assert HostMemory.read(tmp_path).total_bytes == psutil.virtual_memory().total
    here = HostMemory.read()
    assert 0 < here.available_bytes <= here.total_bytes <= psutil.virtual_memory().total


def test_a_step_gets_no_more_than_its_share_of_what_there_is():
    host = HostMemory(total_bytes=1000, available_bytes=0)
    assert Limits(memory_bytes=10**6).within(host).memory_bytes == int(SHARE_OF_MEMORY * 1000)
    assert Limits(memory_bytes=10, processes=7).within(host) == Limits(memory_bytes=10, processes=7)


@pytest.mark.parametrize("cores", [1, 2, 16, 64, 128, 224])
def test_parallel_builds_stay_below_the_most_processes(cores):
    ninja, inductor = 5 * (cores + 2), 4 * 64
    assert most_processes(cores) > ninja + inductor
    assert most_processes(1) == LEAST_PROCESSES and most_processes() == Limits(memory_bytes=1).processes
