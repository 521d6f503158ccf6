"""``python -m fastgen`` is the command ``fastgen``."""

import os
import sys

from .cli import main

status = main()
if "TORCHELASTIC_RUN_ID" in os.environ:
    # One of torchrun's processes. With Gloo, 1 run of 40 was aborted by C++ while Python shut down, after all files had
    # been written; the likely cause is a thread of Gloo that still releases tensors. So Python's shutdown is left out.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
sys.exit(status)
