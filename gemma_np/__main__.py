"""Run `gemma-np` as `python -m gemma_np`."""

import sys

from gemma_np.cli import main

sys.exit(main())
