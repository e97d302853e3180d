"""Whether this is `make test-long`: suites that try everything then do, and a sample otherwise."""

import os

LONG = "FLOWDATA_LONG" in os.environ
