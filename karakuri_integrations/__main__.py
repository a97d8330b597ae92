"""`python -m karakuri_integrations` is the `karakuri` command."""

import sys

from .cli import main

sys.exit(main())
