"""The command line as ``python -m hpo_cluster``."""

import sys

from hpo_cluster.cli.main import main

sys.exit(main())
