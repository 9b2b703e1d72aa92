"""Names of version 0.1 in the interface to tuned kernels, which work for one version with a warning."""

import pytest

from autotune import kernel
from autotune.kernel import resource_usage_of


@pytest.mark.parametrize(
    ("old", "new"), [("Kernel", "LoadedKernel"), ("KernelMaker", "KernelProvider"), ("MadeKernel", "CompileResult")]
)
def test_an_old_class_name_is_the_new_class_with_a_warning(old, new):
    with pytest.warns(DeprecationWarning, match=f"{old} is now {new}"):
        assert getattr(kernel, old) is getattr(kernel, new)


def test_an_unknown_name_is_an_error_as_in_any_module():
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = kernel.Nothing


class Earlier:
    def __init__(self):
        self.made = {"registers": 40.0}


class Current:
    def __init__(self):
        self.resource_usage = {"registers": 32.0}


def test_a_kernel_of_a_plug_in_may_have_its_usage_under_the_old_name():
    with pytest.warns(DeprecationWarning, match=r"Earlier\.made is now resource_usage"):
        assert resource_usage_of(Earlier()) == {"registers": 40.0}


def test_the_current_name_warns_of_nothing(recwarn):
    assert resource_usage_of(Current()) == {"registers": 32.0}
    assert not recwarn.list
