"""What a federated server and its workers send each other: a task, with the model to begin from, and what came of it.

    server -> worker  a vector, such as the model, and which client is to train from it
    worker -> server  that client's answer

Both are sent for every client anew, as to devices that keep nothing, and so are counted. A worker's last answer is
sent, and its next task received, while it plays a client.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.distributed as dist

from algorithms.common.bits import joined, split
from harness.worker import Worker


class Task(NamedTuple):
    """What a worker is sent beside the vector: the task's number, who is to train, and on how many samples.

    0 samples say goodbye; `left` is what the budget had when the task was given, or its round began.
    """

    number: int
    client: int
    samples: int
    left: int


GOODBYE = Task(0, 0, 0, 0)


def message(vector: torch.Tensor, task: Task) -> torch.Tensor:
    """Both in one, uint8, in a memory of its own."""
    return joined(vector, torch.tensor(task, dtype=torch.int64, device=vector.device))


def do_tasks(worker: Worker, like: torch.Tensor, play: Callable[[torch.Tensor, Task], torch.Tensor]) -> None:
    """Be a worker until the server says goodbye.

    Args:
        like: a vector such as the server's.
        play: given a vector and a task, the answer: uint8, of one length.
    """
    server, inbox, sending = worker.num_workers, message(like, GOODBYE), list[dist.Work | None]()
    coming = dist.irecv(inbox, server)
    while True:
        wait([coming])
        vector, numbers = split(inbox, like.nbytes)
        task = Task(*numbers.view(torch.int64).tolist())
        if not task.samples:
            return wait(sending)
        coming = dist.irecv(inbox, server)
        answer = play(vector.view(like.dtype), task)
        worker.measure("comm/download_bytes", float(inbox.nbytes))
        worker.measure("comm/upload_bytes", float(answer.nbytes))
        wait(sending)
        sending = [dist.isend(answer, server)]


def wait(works: Iterable[dist.Work | None]) -> None:
    """Until all have ended."""
    for work in works:
        assert work is not None  # only a rank outside the group gets none
        work.wait()
