"""Reports: one self-contained HTML page for a run, a comparison of runs or a solved model, and video files.

Nothing here imports JAX or needs a network: the pages are read from the run folder, and the figures are drawn by us.
"""

from polyak.report.compare import compare
from polyak.report.page import write
from polyak.report.solution import write_solution
from polyak.report.video import record

__all__ = ["compare", "record", "write", "write_solution"]
