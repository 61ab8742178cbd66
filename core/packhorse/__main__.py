"""``python -m packhorse``."""

import sys

from packhorse.cli import main

sys.exit(main())
