"""`python -m fedgen.server` is the command line."""

import sys

from fedgen.server.cli import main

sys.exit(main())
