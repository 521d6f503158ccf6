"""``python -m fastgen`` is the command ``fastgen``."""

import sys

from .cli import main

sys.exit(main())
