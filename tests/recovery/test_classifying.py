"""What an exception says about the state: errors of devices are told apart by what CUDA says of them."""

from __future__ import annotations

import pytest
import torch

from holdfast.errors import Fenced, PeerLost, SaveFailed
from holdfast.recovery.stopping.classifying import Cause, cause_of


def accelerator(text: str) -> RuntimeError:
    return torch.AcceleratorError(text) if hasattr(torch, "AcceleratorError") else RuntimeError(text)


MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.1 GiB"),
    accelerator("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("MPS backend out of memory (MPS allocated: 9.0 GB)"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError("Unable to allocate 30 GiB"),
]
LOST = [
    accelerator("CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    accelerator("CUDA error: unspecified launch failure"),
    accelerator("CUDA error: uncorrectable ECC error encountered"),
    accelerator("CUDA error: misaligned address"),
    RuntimeError("HIP error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    accelerator("CUDA error: something that no version of CUDA has said before"),
]
HARMLESS = [
    accelerator("CUDA error: invalid configuration argument"),
    accelerator("CUDA error: no kernel image is available for execution on the device"),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a non-contiguous"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (4x8 and 16x32)"),
    ValueError("CUDA error: said by somebody else"),
    KeyError("text"),
]


def said(error: BaseException) -> str:
    return f"{type(error).__name__} {str(error)[:40]}"


@pytest.mark.parametrize("error", MEMORY, ids=said)
def test_after_out_of_memory_the_state_can_be_read(error) -> None:
    assert cause_of(error) is Cause.OUT_OF_MEMORY


@pytest.mark.parametrize("error", LOST, ids=said)
def test_after_a_sticky_error_nothing_is_tried(error) -> None:
    assert cause_of(error) is Cause.DEVICE_LOST


@pytest.mark.parametrize("error", HARMLESS, ids=said)
def test_other_errors_are_failures_of_the_program(error) -> None:
    assert cause_of(error) is Cause.FAILURE


def test_a_device_that_is_lost_is_found_behind_a_wrapper() -> None:
    def fail() -> None:
        try:
            raise LOST[0]
        except RuntimeError as error:
            raise ValueError("my loss function failed") from error

    with pytest.raises(ValueError, match="my loss") as wrapper:
        fail()
    assert cause_of(wrapper.value) is Cause.DEVICE_LOST


def test_a_second_ctrl_c_while_a_device_is_lost_reads_nothing_either() -> None:
    pressed = KeyboardInterrupt()
    pressed.__context__ = LOST[0]
    assert cause_of(pressed) is Cause.DEVICE_LOST
    pressed.__suppress_context__ = True
    assert cause_of(pressed) is Cause.ON_PURPOSE


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), GeneratorExit()], ids=said)
def test_whoever_leaves_on_purpose_has_not_failed(error) -> None:
    assert cause_of(error) is Cause.ON_PURPOSE


@pytest.mark.parametrize("error", [SaveFailed("x"), PeerLost("x"), Fenced("x")], ids=said)
def test_what_we_raise_is_not_the_program(error) -> None:
    assert cause_of(error) is Cause.OURS


@pytest.mark.parametrize(
    "text",
    [
        "DataLoader worker (pid(s) 123, 124) exited unexpectedly",
        "DataLoader worker (pid 123) is killed by signal: Terminated. ",
        "DataLoader worker (pid 123) exited unexpectedly with exit code 1. Details are lost",
    ],
)
def test_a_worker_that_has_ended_is_recognised(text) -> None:
    assert cause_of(RuntimeError(text)) is Cause.WORKER_EXITED
    assert cause_of(ValueError(text)) is Cause.FAILURE


def test_an_error_within_a_worker_is_a_failure() -> None:
    text = "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback"
    assert cause_of(ValueError(text)) is Cause.FAILURE
    assert cause_of(RuntimeError(text)) is Cause.FAILURE


def test_causes_that_go_round_in_a_circle_end() -> None:
    one, two = ValueError("a"), ValueError("b")
    one.__context__, two.__context__ = two, one
    assert cause_of(one) is Cause.FAILURE
