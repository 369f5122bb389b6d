"""Imported by the fork server alone, before its first fork: all that a worker needs, and the server's own clean-up."""

import atexit
import os
import shutil

import torch

import hardware.real.worker_process  # noqa: F401 - imported once for all workers
from hardware.real.fork_server import FOLDER_VARIABLE

# The first step of an optimiser imports a second's worth of torch: in every worker, and on the clock, if not here. On
# "meta", which chooses no vector instructions: those are for each worker's environment to say.
parameter = torch.nn.Parameter(torch.zeros(1, device="meta"))
parameter.grad = torch.zeros(1, device="meta")
torch.optim.SGD([parameter]).step()

# Workers leave by os._exit, past this; the server does not, once its parent and all workers have gone.
atexit.register(shutil.rmtree, os.environ[FOLDER_VARIABLE], ignore_errors=True)
