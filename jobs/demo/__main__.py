"""`python -m jobs.demo ...`."""

import sys

from jobs.demo.main import main
from jobs.main import run_job

sys.exit(run_job(main))
