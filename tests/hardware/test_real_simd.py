"""Vector instructions are those that were asked for, or the run is refused."""

import pytest
from composed import checked, setup

from hardware.real.simd import LEVELS, check_level
from harness.baseline import sequential
from harness.errors import UserError, WorkerFailed
from tests.hardware.toys import Telling, machine, no_progress, program


def has(level):
    try:
        check_level(level)
    except UserError:
        return False
    return True


@pytest.mark.parametrize("level", LEVELS)
def test_torch_computes_with_what_was_asked_for(level):
    if not has(level):
        pytest.skip(f"needs a processor with {level}")
    done = machine(1, simd=level).execute(program(Telling), no_progress)
    assert done.failure is None and done.metrics["toy/capability"] == level


def test_unasked_it_takes_the_widest():
    done = machine(1).execute(program(Telling), no_progress)
    assert done.metrics["toy/capability"] == [level for level in LEVELS if has(level)][-1]


@pytest.mark.parametrize(("flags", "most"), [("sse2", 1), ("avx2 fma", 2), ("avx2 fma avx512f avx512bw avx512dq", 2),
                                             ("avx2 fma avx512f avx512bw avx512dq avx512vl", 3)])  # fmt: skip
def test_a_processor_without_them_is_refused(tmp_path, flags, most):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: fpu {flags}\n\nprocessor\t: 1\n")
    for number, level in enumerate(LEVELS):
        if number < most:
            check_level(level, tmp_path / "cpuinfo")
        else:
            with pytest.raises(UserError, match=r"hardware\.simd must be null or what this processor has: default"):
                check_level(level, tmp_path / "cpuinfo")


def test_unknown_ones_are_refused():
    with pytest.raises(UserError, match=r"hardware\.simd must be null or one of default, avx2, avx512, got 'sse'"):
        machine(1, simd="sse")


def test_torch_that_did_not_listen_fails_the_run(monkeypatch):
    monkeypatch.setitem(LEVELS, "default", type(LEVELS["default"])(frozenset(), {}))
    done = machine(1, simd="default").execute(program(Telling), no_progress)
    assert isinstance(done.failure, WorkerFailed) and "hardware.simd=default" in str(done.failure)


def test_native_kernels_are_refused():
    with pytest.raises(UserError, match=r"hardware\.simd=default does not run: .* or use hardware\.simd=null"):
        checked("algorithm=hogwild", "hardware=cpu", "hardware.simd=default", "problem=least_squares")


def test_the_baseline_has_the_same_instructions_and_one_thread():
    chosen = ["algorithm=sgd", "algorithm.batch_size=64", "problem=least_squares", "tracking=none", "hardware=cpu"]
    run = setup(*chosen, "hardware.simd=default", "hardware.intra_op_threads=2")
    hardware = sequential(run).hardware
    assert (hardware.simd, hardware.intra_op_threads, hardware.num_workers) == ("default", 1, 1)
    assert sequential(run).algorithm.batch_size == 64  # no kernel, which would compute with all instructions
