import os
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autotune.errors import DeviceError
from autotune.runtime import discovery

XEON = """processor\t: 0
model name\t: Intel(R) Xeon(R) Platinum 8480+
flags\t\t: fpu sse4_2 avx2 avx512f avx512_vnni avx512_bf16 avx512_fp16 amx_bf16 amx_tile amx_int8

processor\t: 1
model name\t: another
flags\t\t: fpu
"""
GRAVITON = "processor\t: 0\nFeatures\t: fp asimd sve bf16 i8mm\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n"


@pytest.mark.parametrize(
    ("text", "name", "isa"),
    [
        (
            XEON,
            "Intel(R) Xeon(R) Platinum 8480+",
            ("sse4_2", "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8"),
        ),
        (GRAVITON, "Neoverse-V1", ("asimd", "sve", "bf16")),
        (GRAVITON.replace("0xd40", "0xfff"), "Arm 0x41 part 0xfff", ("asimd", "sve", "bf16")),
        ("", None, ()),
    ],
)
def test_cpuinfo_tells_the_model_and_what_decides_speed(text: str, name: str | None, isa: tuple[str, ...]) -> None:
    assert discovery.read_cpuinfo(text) == (name, isa)


def test_this_hosts_cpu() -> None:
    cpu = discovery.find("cpu")
    assert cpu.kind == "cpu" and cpu.torch_name == "cpu"
    assert 1 <= cpu.cores <= len(os.sched_getaffinity(0))
    assert cpu.memory_bytes > 2**28
    assert cpu.uuid.startswith("cpu-") and cpu == discovery.find("cpu")
    assert discovery.devices()[-1] == cpu


def host(root: Path, cgroup: str, **files: str) -> Path:
    """A root folder with the given control groups; ``__`` in a name separates folders, ``cpu_max`` is ``cpu.max``."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    for name, text in files.items():
        *folders, last = name.split("__")
        folder = root.joinpath("sys/fs/cgroup", *folders)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / last.replace("_", ".", 1)).write_text(text)
    return root


@pytest.mark.parametrize(
    ("cgroup", "files", "cores"),
    [
        ("0::/\n", {}, 8),
        ("0::/\n", {"cpu_max": "max 100000\n"}, 8),
        ("0::/\n", {"cpu_max": "250000 100000\n"}, 3),
        ("0::/\n", {"cpu_max": "10000 100000\n"}, 1),
        ("0::/pod/one\n", {"pod__cpu_max": "200000 100000\n", "pod__one__cpu_max": "max 100000\n"}, 2),
        ("0::/seen/from/the/host\n", {"cpu_max": "400000 100000\n"}, 4),
        ("0::/\n", {"cpu_max": "9900000 100000\n"}, 8),
        (
            "4:memory:/pod\n3:cpu,cpuacct:/pod\n",
            {"cpu__pod__cpu_cfs_quota_us": "150000", "cpu__pod__cpu_cfs_period_us": "100000"},
            2,
        ),
        ("3:cpu,cpuacct:/\n", {"cpu__cpu_cfs_quota_us": "-1\n", "cpu__cpu_cfs_period_us": "100000\n"}, 8),
    ],
)
def test_cores_are_bounded_by_affinity_and_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cgroup: str, files: dict[str, str], cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert discovery.usable_cores(host(tmp_path, cgroup, **files)) == cores


def test_without_control_groups_affinity_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5}, raising=False)
    assert discovery.usable_cores(tmp_path) == 2


class NotSupportedError(Exception):
    pass


@dataclass(eq=False)
class Gpu:
    """One GPU, or one MIG device, as NVML's bindings show it."""

    name: str
    uuid: str
    memory: int = 150_754_820_096
    limit_mw: int | None = 700_000
    migs: "list[Gpu]" = field(default_factory=list)
    partitioned: bool = False


class Nvml:
    """NVML's bindings over a list of GPUs, with their names and their errors."""

    NVML_DEVICE_MIG_ENABLE = 1
    NVMLError = NotSupportedError

    def __init__(self, gpus: list[Gpu]) -> None:
        self.gpus = gpus

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Gpu:
        return self.gpus[index]

    def nvmlDeviceGetMigMode(self, gpu: Gpu) -> list[int]:
        if "H200" not in gpu.name:
            raise NotSupportedError
        return [int(gpu.partitioned), 0]

    def nvmlDeviceGetMaxMigDeviceCount(self, gpu: Gpu) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, gpu: Gpu, index: int) -> Gpu:
        if index >= len(gpu.migs):
            raise NotSupportedError
        return gpu.migs[index]

    def nvmlDeviceGetUUID(self, gpu: Gpu) -> str:
        return gpu.uuid

    def nvmlDeviceGetName(self, gpu: Gpu) -> str:
        return gpu.name

    def nvmlDeviceGetMemoryInfo(self, gpu: Gpu) -> Any:
        return SimpleNamespace(total=gpu.memory)

    def nvmlDeviceGetPowerManagementLimit(self, gpu: Gpu) -> int:
        if gpu.limit_mw is None:
            raise NotSupportedError
        return gpu.limit_mw

    nvmlDeviceGetEnforcedPowerLimit = nvmlDeviceGetPowerManagementLimit

    def nvmlDeviceGetCudaComputeCapability(self, gpu: Gpu) -> tuple[int, int]:
        return (9, 0) if "H200" in gpu.name else (8, 9)


def two() -> Nvml:
    return Nvml([Gpu("NVIDIA H200", "GPU-aa11"), Gpu("NVIDIA L40S", "GPU-bb22", 48 * 2**30, None)])


def partitioned() -> Nvml:
    migs = [Gpu(f"NVIDIA H200 MIG {n}g.{18 * n}gb", f"MIG-{n}", 18 * n * 10**9) for n in (1, 2)]
    return Nvml([Gpu("NVIDIA H200", "GPU-aa11", migs=migs, partitioned=True), Gpu("NVIDIA H200", "GPU-bb22")])


def test_a_gpu_is_described_by_what_its_class_needs() -> None:
    h200, l40s = discovery.read_gpus(two(), None, cores=16)
    assert h200.device_class == "nvidia-h200/whole/700w"
    assert (h200.capability, h200.memory_bytes, h200.cores, h200.uuid) == ((9, 0), 150_754_820_096, 16, "GPU-aa11")
    assert (l40s.torch_name, l40s.power_limit_w, l40s.capability) == ("cuda:1", None, (8, 9))


@pytest.mark.parametrize(
    ("visible", "uuids"),
    [
        (None, ["GPU-aa11", "GPU-bb22"]),
        ("1,0", ["GPU-bb22", "GPU-aa11"]),
        (" 1 ", ["GPU-bb22"]),
        ("GPU-bb", ["GPU-bb22"]),
        ("0,7,1", ["GPU-aa11"]),
        ("1,1", ["GPU-bb22"]),
        ("-1,0", []),
        ("GPU-", []),
        ("", []),
        ("none", []),
    ],
)
def test_the_order_is_that_of_cuda_visible_devices(visible: str | None, uuids: list[str]) -> None:
    found = discovery.read_gpus(two(), visible, cores=1)
    assert [gpu.uuid for gpu in found] == uuids
    assert [gpu.index for gpu in found] == list(range(len(uuids)))


@pytest.mark.parametrize(
    ("visible", "uuids"), [(None, ["MIG-1"]), ("MIG-2", ["MIG-2"]), ("1,0", ["MIG-1"]), ("1", ["GPU-bb22"])]
)
def test_cuda_uses_one_mig_device_and_then_no_whole_gpu(visible: str | None, uuids: list[str]) -> None:
    assert [gpu.uuid for gpu in discovery.read_gpus(partitioned(), visible, cores=1)] == uuids


def test_a_mig_device_has_its_own_class() -> None:
    (mig,) = discovery.read_gpus(partitioned(), "MIG-2", cores=1)
    assert mig.device_class == "nvidia-h200/2g.36gb/700w"
    assert mig.memory_bytes == 36 * 10**9


@pytest.fixture
def gpu_host(monkeypatch: pytest.MonkeyPatch) -> None:
    found = discovery.read_gpus(two(), None, cores=1)
    monkeypatch.setattr(discovery, "_gpus", lambda: (found, ""))
    monkeypatch.setattr(discovery, "_torch_is_for_cpus", lambda: False)


@pytest.mark.usefixtures("gpu_host")
@pytest.mark.parametrize(
    ("asked", "name"), [("auto", "cuda:0"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1"), ("cpu", "cpu")]
)
def test_a_device_is_found_by_what_was_asked(asked: str, name: str) -> None:
    assert discovery.find(asked).torch_name == name


@pytest.mark.usefixtures("gpu_host")
def test_auto_means_the_cpu_where_torch_is_built_for_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "_torch_is_for_cpus", lambda: True)
    assert discovery.find("auto").kind == "cpu"
    assert discovery.find("cuda").kind == "cuda"


@pytest.mark.usefixtures("gpu_host")
def test_a_device_that_is_not_there_is_answered_with_those_that_are() -> None:
    with pytest.raises(DeviceError, match="device cuda:2 is not there") as refused:
        discovery.find("cuda:2")
    assert "cuda:0 (NVIDIA H200), cuda:1 (NVIDIA L40S), cpu (" in str(refused.value)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize("asked", ["gpu", "", "cuda:", "cuda:x", "cuda:-1", "CPU", "cuda:0 "])
def test_a_device_that_cannot_be_understood_is_refused(asked: str) -> None:
    with pytest.raises(DeviceError, match="expected: auto, cpu, cuda or cuda:N"):
        discovery.find(asked)


def test_hidden_gpus_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert [device.kind for device in discovery.devices()] == ["cpu"]
    with pytest.raises(DeviceError, match="cuda is not there"):
        discovery.find("cuda")


@pytest.mark.gpu
def test_discovery_agrees_with_torch() -> None:
    import torch

    gpus = [device for device in discovery.devices() if device.kind == "cuda"]
    assert len(gpus) == torch.cuda.device_count()
    for gpu in gpus:
        properties = torch.cuda.get_device_properties(gpu.index)
        assert gpu.name == properties.name.partition(" MIG ")[0]
        assert gpu.capability == (properties.major, properties.minor)
        assert gpu.uuid.endswith(str(properties.uuid))
        assert gpu.power_limit_w
