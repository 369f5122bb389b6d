"""The benchmark of simulated accelerators, as far as it goes without one."""

import time

import pytest
import torch

from experiments.benchmarks import accelerator
from experiments.benchmarks.accelerator_cases import Case, cases
from hardware.simulated.compute import Roofline

ROOFLINE = Roofline("none", True, {"float32": 1e12, "bfloat16": 2e12}, 1e11, operator_overhead_s=1e-5, nonzero_s=None)
BY_NAME = {case.name: case for case in cases()}


def test_names_differ():
    assert len(BY_NAME) == len(list(cases()))


def test_without_a_device_there_is_one_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"needs a CUDA device, and torch .* sees none here"):
        accelerator.main()


def test_a_device_chooses_its_file(monkeypatch):
    monkeypatch.setattr("sys.argv", ["accelerator"])
    monkeypatch.setattr(accelerator, "_files", lambda: ["h100", "h200"])
    assert accelerator._chosen("NVIDIA H100 80GB HBM3") == "h100"
    with pytest.raises(SystemExit, match="Tesla T4: name the file that describes it, one of h100, h200"):
        accelerator._chosen("Tesla T4")


def test_what_is_charged_is_what_operators_cost():
    (charged,) = accelerator.charges(BY_NAME["1024^3 bf16"], ROOFLINE)
    assert charged == pytest.approx((1e-5, 2 * 1024**3 / 2e12))


@pytest.mark.parametrize(
    ("name", "operators"),
    [
        ("step of SGD, 64 tensors of 2^16 fp32", 1),  # one launch for all, as on a device
        ("step of SGD, 64 tensors of 2^16 fp32, one by one", 64),
        ("softmax 1024x1024 fp32", 1),
        ("transpose 8192x8192 fp32", 1),
    ],
)
def test_neither_questions_nor_labels_are_operators(name, operators):
    assert len(accelerator.charges(BY_NAME[name], ROOFLINE)) == operators


@pytest.mark.parametrize(
    "name", [name for name in BY_NAME if name.startswith(("attention 8", "transformer layer 256"))]
)
def test_fake_tensors_do(name):
    assert accelerator.predicted(accelerator.charges(BY_NAME[name], ROOFLINE))["device_s"] > 0


@pytest.mark.parametrize(
    ("charged", "elapsed_s"),
    [
        ([(1.0, 3.0)], 3.02),  # the device is slower: the first launch is seen, once in 50 calls
        ([(3.0, 1.0)], 3.02),  # the host is slower: so is the last run
        ([(1.0, 0.0), (1.0, 2.0)], 2.04),
    ],
)
def test_a_call_takes_as_long_as_the_slower_of_host_and_device(charged, elapsed_s):
    assert accelerator.predicted(charged)["elapsed_s"] == pytest.approx(elapsed_s)


class Event:
    """One that happens when it is recorded: the CPU does not run ahead."""

    def __init__(self, enable_timing):
        pass

    def record(self):
        self.at_s = time.perf_counter()

    def elapsed_time(self, end):
        return (end.at_s - self.at_s) * 1e3


def test_a_row_compares_three_figures(monkeypatch):
    for name, stand_in in {"Event": Event, "synchronize": lambda: None, "_sleep": lambda cycles: None}.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(accelerator, "SERIES_S", 1e-3)
    waiting = Case("waiting", "5 ms", lambda device: lambda: (time.sleep(5e-3), torch.ones(1).add_(1)))
    row = accelerator.compared(waiting, ROOFLINE, torch.device("cpu"))
    for figure in accelerator.FIGURES:
        assert row[figure] >= 5e-3
        assert row[f"{figure.removesuffix('_s')}_error"] < -0.9
    assert accelerator.errors([row], "waiting")["absolute_device_error"] == -row["device_error"]
