"""What every rank of a world but the first does: say who it is, do its part of the one job, end as rank 0 does.

It composes nothing, writes no file and prints nothing: what it has to say goes to rank 0.
"""

import os
import signal
import threading
import time
from types import FrameType

import torch.distributed as dist

from hardware.real.card import own_card
from hardware.real.member import BEAT_S, Job, StoreLine, work
from hardware.real.world import World, explain_end
from hardware.real.world_store import store_of
from harness.errors import TwinclockError

LOOK_S = 0.1  # between two looks at what rank 0 has said
GRACE_S = 2.0  # after SIGTERM, so that rank 0, which has it too, takes it for an interrupt and not for our death


def follow(world: World) -> int:
    """Be a rank other than 0. Returns the exit status."""
    told: list[float] = []  # when to end

    def terminate(number: int, frame: FrameType | None) -> None:
        told.append(time.monotonic() + GRACE_S)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all ranks; rank 0 decides
    signal.signal(signal.SIGTERM, terminate)
    try:
        store = store_of(world)
        try:
            store.put(f"card {world.rank}", own_card(world))
        except TwinclockError as error:
            store.put(f"card {world.rank}", error)
        working, due_s = False, 0.0
        while not store.has("end") and not (told and time.monotonic() > told[0]):
            if not working and store.has("job"):
                _begin(store.get("job"), world)
                working = True
            if time.monotonic() >= due_s:
                store.add(f"alive {world.rank}", 1)
                due_s = time.monotonic() + BEAT_S
            time.sleep(LOOK_S)
        status = int(store.get("end")) if store.has("end") else 128 + signal.SIGTERM
        store.add("left", 1)
        if status:
            explain_end(os.environ, "as rank 0 did, which says why")
    except (dist.DistError, TwinclockError):  # rank 0 is gone, or never came: it or its launcher says so
        return 1
    return status


def _begin(job: Job, world: World) -> None:
    store = store_of(world)
    arguments = job, world.rank, StoreLine(store, world.rank, job), store
    threading.Thread(target=work, args=arguments, name=f"rank {world.rank}", daemon=True).start()
