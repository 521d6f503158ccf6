"""Samples on their way into files, batch by batch: what was cut short at any moment goes on where it was.

A record of the request lies with the files from the first moment. The same request goes on after it, with the same
batches, so that the files are those of a run that was never cut short; another one is refused.
"""

from .arrays import ARRAYS, ArrayFile
from .folder import Folder
from .output import Output, open_output
from .record import compact

__all__ = ["ARRAYS", "ArrayFile", "Folder", "Output", "compact", "open_output"]
