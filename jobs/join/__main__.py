"""`python -m jobs.join ...`."""

import sys

from jobs.join.main import main
from jobs.main import run_job

sys.exit(run_job(main))
