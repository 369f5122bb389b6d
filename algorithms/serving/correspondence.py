"""A server's messages: it hears whoever comes first, and answers without waiting, so that latencies pass together."""

from collections import deque
from collections.abc import Callable

import torch
import torch.distributed as dist

from harness.worker import Worker


class Correspondence:
    """Messages between a server and its workers, all under way together.

    Args:
        like: a message of any worker; all are as long.
    """

    def __init__(self, worker: Worker, like: torch.Tensor) -> None:
        self._worker, self._like = worker, like
        self._spare: list[torch.Tensor] = []  # inboxes to be used again
        self._heard: torch.Tensor | None = None  # the inbox of the last message
        self._coming: deque[tuple[torch.Tensor, Callable[[], int]]] = deque()
        self._sent: dict[int, list[tuple[torch.Tensor, dist.Work | None]]] = {}  # perhaps under way, by rank
        self._arrived: list[tuple[torch.Tensor, dist.Work | None]] = []  # has been answered, but not been waited for

    def expect(self) -> None:
        """Begin to receive a message more, from anyone."""
        self._settle()
        inbox = self._spare.pop() if self._spare else torch.empty_like(self._like)
        self._coming.append((inbox, self._worker.begin_receive(inbox)))

    @property
    def expected(self) -> int:
        """Messages that are still to be heard."""
        return len(self._coming)

    def hear(self) -> tuple[int, torch.Tensor]:
        """Wait for the next message, whoever sends it; what its sender was sent before has arrived then.

        Returns:
            the rank of the sender, and the message, to be read before the next one is heard.
        """
        if self._heard is not None:
            self._spare.append(self._heard)
        message, wait = self._coming.popleft()
        self._heard, source = message, wait()
        self._arrived += self._sent.pop(source, [])
        return source, message

    def send(self, rank: int, message: torch.Tensor) -> None:
        """Begin to send a message, which nobody writes to from now on."""
        self._sent.setdefault(rank, []).append((message, dist.isend(message, rank)))

    def close(self) -> None:
        """Wait until all that was sent has arrived."""
        for sent in self._sent.values():
            self._arrived += sent
        self._settle()

    def _settle(self) -> None:
        """Have done with what has arrived, while nobody waits for an answer."""
        for _, work in self._arrived:
            assert work is not None  # only a rank outside the group gets none
            work.wait()
        self._arrived = []
