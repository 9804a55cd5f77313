"""`python -m sidecar` is `lb-sidecar`."""

import sys

from sidecar.cli import main

sys.exit(main())
