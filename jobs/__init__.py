"""Thin mains, one per command: the only place where pipeline, models and streaming meet."""

import os

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # see models/__init__.py
