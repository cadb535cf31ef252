"""`python -m supervisor`: the same as `forkshim`."""

import sys

from supervisor.cli import main

sys.exit(main())
