import pytest

from muscjax import kernels
from tests.kernel_suite import KernelSuite


class TestXla(KernelSuite):
    implementation = "xla"


def test_every_implementation_runs_the_suite():
    tested = {suite.implementation for suite in KernelSuite.__subclasses__()}
    assert tested == set(kernels.IMPLEMENTATIONS)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="xla"):
        kernels.min_squared_distances("cuda")
