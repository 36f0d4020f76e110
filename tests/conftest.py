"""What all tests share: the repository on the path, one thread, and its environments."""

import os
import signal
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
# Workers inherit sys.path; `--env-id toys:Id` finds the tests' own environments in it.
for folder in (ROOT, ROOT / "tests"):
    sys.path.insert(0, str(folder))
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
torch.set_num_threads(1)
# As from a terminal: in the background of a script Ctrl-C is ignored, under `nohup` the terminal's
# end, also by what the tests start, which would then wait for a signal for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
