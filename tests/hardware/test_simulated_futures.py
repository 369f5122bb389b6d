"""Futures and works that torch's C++ waits for: completed by the rank that asks, never waited for in vain."""

import gc
import threading
import time
import weakref
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from simulated_ranks import compute_for, execute, results
from torch._C import _distributed_c10d as native

from harness.errors import UserError


def ones():
    return torch.ones(4, dtype=torch.float64)  # 2.5 s a step, of two


def begun():
    return dist.all_reduce(ones(), async_op=True).get_future()


@pytest.mark.parametrize(
    "wait",
    [
        lambda future: torch.futures.collect_all([future]).wait()[0].wait(),
        lambda future: torch.futures.wait_all([future])[0],
        lambda future: torch._C.wait(torch.futures.collect_all([future]))[0].wait(),
        lambda future: torch.futures.collect_all([future]).then(lambda it: it.value()[0].value()).value(),
        lambda future: native._create_work_from_future(future).get_future().wait(),
    ],
)
def test_what_torch_makes_of_a_future_can_be_waited_for(wait):
    def body(worker):
        future = begun()
        compute_for(worker, 1.0)
        return worker.clock.now(), wait(future)[0].tolist(), worker.clock.now()

    assert results(body, 2) == [(1.0, [2.0] * 4, 5.0)] * 2


def test_asking_whether_a_future_is_done_takes_its_time_and_ends():
    def body(worker):
        future = begun()
        both = torch.futures.collect_all([begun(), begun()])
        before = future.done(), both.done()
        while not both.done():
            compute_for(worker, 0.5)
        return before, future.done(), worker.clock.now() < 20.0

    assert results(body, 2) == [((False, False), True, True)] * 2


def test_a_work_registered_for_a_tensor_is_waited_for():
    def body(worker):
        tensor = ones()
        native._register_work(tensor, dist.all_reduce(tensor, async_op=True))
        return torch.ops._c10d_functional.wait_tensor(tensor).tolist()

    assert results(body, 2) == [[2.0] * 4] * 2


def test_callbacks_are_called_at_the_latest_at_the_end():
    called = []

    def body(worker):
        begun().then(lambda future: called.append((worker.rank, future.value()[0].tolist())))

    results(body, 2)
    assert sorted(called) == [(rank, [2.0] * 4) for rank in range(2)]


def test_a_future_that_is_over_is_not_kept():
    def body(worker):
        seen = []
        for _ in range(3):
            work = dist.all_reduce(tensor := ones(), async_op=True)
            seen.append(weakref.ref(tensor))
            work.get_future()
            work.wait()
            del tensor, work
        begun()
        gc.collect()
        return [ref() is None for ref in seen]

    assert results(body, 2) == [[True] * 3] * 2


def test_a_thread_of_the_script_may_complete_a_future():
    def body(worker):
        future = torch.futures.Future()
        if worker.rank == 0:
            threading.Thread(target=lambda: (time.sleep(0.05), future.set_result(5))).start()
            value = future.wait()
        dist.barrier()
        return value if worker.rank == 0 else None

    assert results(body, 2) == [5, None]


def test_the_error_of_an_exchange_is_its_futures():
    def body(worker):
        group = dist.new_group(timeout=timedelta(seconds=5))
        if worker.rank == 1:
            compute_for(worker, 100.0)
        else:
            future = dist.all_reduce(ones(), group=group, async_op=True).get_future()
            for asked in (future, future.then(lambda it: it.value()), torch.futures.collect_all([future])):
                with pytest.raises(RuntimeError, match="Timed out waiting 5000ms"):
                    asked.wait()

    execute(body, 2, deaths={1: 50.0})


def test_hooks_of_cpp_are_refused():
    def body(worker):
        model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(1, 1))
        model._register_builtin_comm_hook(dist.BuiltinCommHookType.FP16_COMPRESS)

    with pytest.raises(UserError, match=r"no communication hooks of C\+\+ .*: give register_comm_hook one of"):
        results(body, 2)
