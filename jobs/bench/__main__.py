"""`python -m jobs.bench NAME ...`."""

import sys

from jobs.bench.main import main
from jobs.main import run_job

sys.exit(run_job(main))
