"""`python -m supervisor`: the same as `forkshim`."""

import sys

from supervisor.cli.main import main

sys.exit(main())
