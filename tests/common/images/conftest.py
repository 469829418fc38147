import sys
from pathlib import Path

# `--import-mode=importlib` leaves sys.path alone; the helpers beside the tests are imported from here.
sys.path.insert(0, str(Path(__file__).parent))
