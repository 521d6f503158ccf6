"""Where kernels run in tests: on the GPU if there is one, else in Triton's interpreter, corrected."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _corrected_interpreter() -> None:
    from fastgen_kernels.op import interpreted

    if interpreted():
        from . import interpreter

        interpreter.install()


@pytest.fixture(params=["interpreter", pytest.param("gpu", marks=pytest.mark.gpu)])
def kernel_device(request: pytest.FixtureRequest) -> torch.device:
    """Device on which the Triton path can run: CPU under the interpreter, or CUDA."""
    from fastgen_kernels.op import interpreted

    if request.param == "gpu":
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        return torch.device("cuda")
    if not interpreted():
        pytest.skip("TRITON_INTERPRET is not set: the kernels run on the GPU")
    return torch.device("cpu")
