"""Imported by the fork server alone, before its first fork: all that a worker needs, and the server's own clean-up."""

import atexit
import os
import shutil

import torch._dynamo  # noqa: F401 - optimizers of torch import it at their first use, in seconds that a clock would see

import hardware.real.worker_process  # noqa: F401 - imported once for all workers
from hardware.real.fork_server import FOLDER_VARIABLE

# Workers leave by os._exit, past this; the server does not, once its parent and all workers have gone.
atexit.register(shutil.rmtree, os.environ[FOLDER_VARIABLE], ignore_errors=True)
