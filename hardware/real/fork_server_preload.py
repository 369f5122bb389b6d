"""Imported by the fork server alone, before its first fork: all that a worker needs, and the server's own clean-up."""

import atexit
import os
import shutil

from hardware.real.fork_server import FOLDER_VARIABLE
from hardware.real.worker_process import import_optimizers

import_optimizers()  # once for all workers

# Workers leave by os._exit, past this; the server does not, once its parent and all workers have gone.
atexit.register(shutil.rmtree, os.environ[FOLDER_VARIABLE], ignore_errors=True)
