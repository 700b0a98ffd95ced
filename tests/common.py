"""Names that many tests share; what is made anew for each test is a fixture of conftest.py."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
