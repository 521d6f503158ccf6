"""``python -m fastgen`` is the command ``fastgen``."""

import os
import sys

from .cli import main

status = main()
if "TORCHELASTIC_RUN_ID" in os.environ:
    # One of torchrun's processes. A thread of Gloo that still lets go of the last exchange's tensors needs Python, and
    # while Python shuts down that aborts the process (one run in 40): all is written, so nothing is shut down.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
sys.exit(status)
