"""``python -m flowdata``, which is how torchrun starts the command line."""

import sys

from flowdata.commands.cli import main

sys.exit(main())
