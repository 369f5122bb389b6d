"""What torch keeps per process is put back, whatever happened inside."""

import gc
import sys
import threading

import pytest
import torch
import torch.distributed as dist
from simulated_ranks import execute, results
from torch._C import _distributed_c10d as native
from torch.distributed import distributed_c10d as c10d

from hardware.simulated.compute import Fixed
from harness.errors import UserError, WorkerFailed


def state():
    return {
        "world": c10d._world,
        "backend": c10d._backend,
        "init_method": c10d._default_pg_init_method,
        "excepthook": sys.excepthook,
        "num_threads": torch.get_num_threads(),
        "multithreaded backward": torch.autograd.is_multithreading_enabled(),
        "random numbers": torch.get_rng_state().tolist(),
        "streams": dict(vars(torch.cpu)),
        "frozen objects": gc.get_freeze_count(),
    }


def gloo_works():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        x = torch.ones(2)
        dist.all_reduce(x)
        name, sizes = dist.group.WORLD.group_name, []
        # from another thread: the registry of names is the process's again
        elsewhere = threading.Thread(target=lambda: sizes.append(native._resolve_process_group(name).size()))
        elsewhere.start()
        elsewhere.join()
        return torch.equal(x, torch.ones(2)) and sizes == [1]
    finally:
        dist.destroy_process_group()


def failing(worker):
    torch.rand(3)
    if worker.rank == 1:
        raise ZeroDivisionError("by design")
    dist.barrier()


@pytest.mark.parametrize("body", [lambda worker: dist.barrier(), failing], ids=["finishing", "failing"])
@pytest.mark.parametrize("streams", [False, True], ids=["host", "streams"])
def test_everything_is_put_back(body, streams):
    before = state()
    execute(body, 5, compute=Fixed("none", streams=streams, seconds_per_sample=1.0))
    after = state()
    assert after == before
    assert after["world"] is before["world"]
    assert not dist.is_initialized()
    assert gloo_works()


def test_a_real_group_of_the_caller_lives_on():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mine = dist.group.WORLD
        assert results(lambda worker: dist.get_world_size(), 3) == [3, 3, 3]
        assert dist.group.WORLD is mine and dist.get_world_size() == 1
        dist.barrier()
    finally:
        dist.destroy_process_group()


def test_ranks_have_worlds_of_their_own():
    def body(worker):
        assert dist.get_backend() == "simulated"
        return dist.get_rank(), dist.get_world_size(), not torch.autograd.is_multithreading_enabled()

    assert results(body, 3) == [(rank, 3, True) for rank in range(3)]


def test_functional_collectives_find_the_rank_s_group():
    from torch.distributed import _functional_collectives as functional

    def body(worker):
        return functional.all_reduce(torch.full((2,), worker.rank + 1.0), "sum", dist.group.WORLD).tolist()

    assert results(body, 3) == [[6.0, 6.0]] * 3


def test_global_random_numbers_begin_at_the_seed():
    def draw(worker):
        dist.barrier()
        return float(torch.rand(()))

    first, second, other = results(draw, 2), results(draw, 2), results(draw, 2, seed=1)
    assert first == second != other


def test_backend_outside_a_simulation_says_so():
    import hardware.simulated.process_group  # noqa: F401 - registers the backend

    with pytest.raises(RuntimeError, match="exists only inside a simulation"):
        dist.init_process_group("simulated", store=dist.HashStore(), rank=0, world_size=1)
    assert not dist.is_initialized()


def test_hundreds_of_ranks_do_not_pile_up_hooks():
    """`init_process_group` wraps `sys.excepthook` once per call."""
    hook = sys.excepthook
    assert results(lambda worker: sys.excepthook is hook, 300) == [True] * 300


def test_destroying_the_group_inside_is_the_user_s_mistake():
    failure = execute(lambda worker: dist.destroy_process_group(), 1).failure
    assert isinstance(failure, WorkerFailed)


def test_a_thread_that_a_rank_starts_is_told_that_it_has_no_group():
    def body(worker):
        errors = []

        def ask():
            try:
                dist.get_rank()
            except UserError as error:
                errors.append(str(error))

        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        return errors

    assert all(error.startswith("a thread that a rank has started asks for") for (error,) in results(body, 2))
