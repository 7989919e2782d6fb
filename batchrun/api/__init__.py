"""What a server wants, what it said in its dialect, and what it costs.

batches.py    batches of a provider, in two dialects
endpoints.py  who is asked: address, headers, key, the kind of server
prices.py     what a token costs: from the job, or from the server's list of models
caching.py    how the provider's prompt cache is used, by family of models
codes.py      THE table: every way an attempt or a row can end, and the action that follows
dialects.py   which ending servers' codes, words and sentences name
judge.py      one reply -> one verdict; the parser of answers comes as an argument
decisions.py  typed questions and their answers in the two forms of decision models
splitting.py  more questions than a request may have, sent in parts
events.py     whole answers out of streams that nobody asked for
masking.py    secrets in replies, masked before anybody reads them
refusals.py   an error in any dialect -> the name of its ending
waits.py      when a server wants to be asked again
wording.py    JSON and words of others, made fit to read
"""

from batchrun.api.batches import (
    GIVE_UP,
    GONE,
    LINE_BYTES,
    MAX_BYTES,
    BatchApi,
    Doubt,
    Gone,
    Refused,
    Shown,
    Submitted,
    UnavailableError,
    batch_api,
    batch_names,
)
from batchrun.api.caching import Caching, Family, caching_of, family_of
from batchrun.api.codes import ASKED_AGAIN, TABLE, UNSENT, Action, Blame, Count, Ending
from batchrun.api.decisions import form_for as decision_form
from batchrun.api.endpoints import Endpoint, KeyInfo, KeyProblem, check_endpoint, fetch_key, resolve
from batchrun.api.judge import judge
from batchrun.api.masking import Mask
from batchrun.api.prices import Listed, Prices, cost_kind, prices_for
from batchrun.api.splitting import in_parts

__all__ = [
    "ASKED_AGAIN",
    "GIVE_UP",
    "GONE",
    "LINE_BYTES",
    "MAX_BYTES",
    "TABLE",
    "UNSENT",
    "Action",
    "BatchApi",
    "Blame",
    "Caching",
    "Count",
    "Doubt",
    "Ending",
    "Endpoint",
    "Family",
    "Gone",
    "KeyInfo",
    "KeyProblem",
    "Listed",
    "Mask",
    "Prices",
    "Refused",
    "Shown",
    "Submitted",
    "UnavailableError",
    "batch_api",
    "batch_names",
    "caching_of",
    "check_endpoint",
    "cost_kind",
    "decision_form",
    "family_of",
    "fetch_key",
    "in_parts",
    "judge",
    "prices_for",
    "resolve",
]
