"""What all tests share: the repository on the path, one thread, and its environments."""

import os
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
# Workers inherit sys.path; `--env-id toys:Id` finds the tests' own environments in it.
for folder in (ROOT, ROOT / "tests"):
    sys.path.insert(0, str(folder))
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
torch.set_num_threads(1)
