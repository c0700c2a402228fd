"""`python -m gemma_np` is `gemma-np`."""

import sys

from gemma_np.cli import main

sys.exit(main())
