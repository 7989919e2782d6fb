"""What a run would find and need, before it: for `check`, for `preview`, and for the question whether to begin.

survey.py    a sample of the rows, rendered and extrapolated; likely.py: tokens, money and time
checking.py  everything that can be known before a request, one finding each; texts.py: the lines of both commands
"""

from batchrun.forecast import texts
from batchrun.forecast.checking import check, findings
from batchrun.forecast.likely import likely_cost
from batchrun.forecast.survey import look, shown

__all__ = ["check", "findings", "likely_cost", "look", "shown", "texts"]
