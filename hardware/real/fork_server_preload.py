"""Imported by the fork server alone, before its first fork: all that a worker needs, and the server's own clean-up."""

import atexit
import os
import shutil

# torch.optim imports it when first used, which takes a second: in every worker, and on the clock
import torch._dynamo  # noqa: F401

import hardware.real.worker_process  # noqa: F401 - imported once for all workers
from hardware.real.fork_server import FOLDER_VARIABLE

# Workers leave by os._exit, past this; the server does not, once its parent and all workers have gone.
atexit.register(shutil.rmtree, os.environ[FOLDER_VARIABLE], ignore_errors=True)
