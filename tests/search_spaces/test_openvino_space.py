from autotune.records.device import Device
from autotune.search_spaces.openvino import space


def test_defaults_are_every_precision_at_all_cores() -> None:
    device = Device(kind="cpu", name="Test CPU", uuid="cpu-test", cores=4, isa=("amx_bf16",))
    found = space(device, None)
    assert [(d["precision"], d["threads"]) for d in found.defaults] == [("fp32", 4), ("bf16", 4)]
    assert len(list(found)) == 2 * 3 * 2


def test_one_core_has_one_default() -> None:
    device = Device(kind="cpu", name="Test CPU", uuid="cpu-test", cores=1)
    assert [d["threads"] for d in space(device, None).defaults] == [1]
