"""What a federated server and its workers send each other: a task, with the model to begin from, and what came of it.

    server -> worker  a vector, such as the model, and which client is to train from it
    worker -> server  that client's answer

Both are sent for every client anew, as to devices that keep nothing, and so are counted. A worker's last answer is
sent, and its next task received, while it plays a client.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
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


def answers(
    vector: torch.Tensor, tasks: Sequence[Task], ranks: Sequence[int], num_bytes: int
) -> Iterator[torch.Tensor]:
    """Give workers tasks, and hear what they answer, in the order of tasks; all messages are under way together.

    Args:
        vector: for all.
        ranks: who does each task.
        num_bytes: of an answer.
    """
    inboxes = vector.new_empty((len(tasks), num_bytes), dtype=torch.uint8)
    coming = [dist.irecv(inbox, rank) for inbox, rank in zip(inboxes, ranks, strict=True)]
    going = [dist.isend(message(vector, task), rank) for task, rank in zip(tasks, ranks, strict=True)]
    for inbox, *works in zip(inboxes, going, coming, strict=True):
        wait(works)  # who answers has got its task
        yield inbox


def dismiss(worker: Worker, vector: torch.Tensor) -> None:
    """Say goodbye to all workers."""
    wait([dist.isend(message(vector, GOODBYE), rank) for rank in range(worker.num_workers)])


def wait(works: Iterable[dist.Work | None]) -> None:
    """Until all have ended."""
    for work in works:
        assert work is not None  # only a rank outside the group gets none
        work.wait()
