"""The checkpoint's tables and their version.

The tables are public: people open them with datasette or sqlite-utils. Money is in whole picodollars (10⁻¹² USD),
times are Unix seconds (UTC), a position is a row's number in the input, from 0.
"""

APPLICATION_ID = 0x6272756E
"""Tells our files from other SQLite files (the header's field for it; "brun")."""

VERSION = 5

COLUMNS = (
    "status",
    "answer",
    "raw",
    "error_type",
    "error_code",
    "error_message",
    "http_status",
    "attempts",
    "prompt_tokens",
    "completion_tokens",
    "cost",
    "possibly_billed",
    "cached",
    "model",
    "provider",
    "finish_reason",
    "generation_id",
    "seconds",
    "finished_at",
    "max_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "service_tier",
    "reasoning",
    "citations",
)
"""The columns of `answers` between id and run_id, named as the fields of an Outcome."""

ADDED_UP = frozenset({"attempts", "cost", "possibly_billed"})
"""Columns of `answers` to which a later run adds."""

STATUS = """
CASE WHEN r.error_type IS NOT NULL THEN 'failed' WHEN r.question_id IS NULL THEN 'skipped'
     WHEN a.status IN ('ok', 'failed') THEN a.status ELSE 'pending' END
""".strip()
"""A row's status, over `rows r LEFT JOIN answers a`."""

_QUESTIONS = "CREATE TABLE questions(key BLOB PRIMARY KEY, id INTEGER NOT NULL) WITHOUT ROWID"

_ANSWERS = """
CREATE TABLE answers(
  id INTEGER PRIMARY KEY,
  status TEXT NOT NULL, error_type TEXT, max_tokens INTEGER,
  cost INTEGER NOT NULL, possibly_billed INTEGER NOT NULL, attempts INTEGER NOT NULL,
  error_code INTEGER, http_status INTEGER, prompt_tokens INTEGER, completion_tokens INTEGER, cached INTEGER NOT NULL,
  cached_tokens INTEGER, cache_write_tokens INTEGER, service_tier TEXT,
  seconds REAL, finished_at REAL NOT NULL, run_id INTEGER NOT NULL,
  model TEXT, provider TEXT, finish_reason TEXT, generation_id TEXT, error_message TEXT, answer TEXT, raw TEXT,
  reasoning TEXT, citations TEXT)
"""

# Counting and resuming read this narrow copy, never the pages with the texts.
_STATES = "CREATE INDEX answers_state ON answers(id, status, error_type, max_tokens, cost)"

# What failed is rare: a run that begins asks for it alone.
_FAILED = "CREATE INDEX answers_failed ON answers(error_type, max_tokens) WHERE status = 'failed'"

_PLANS = """
CREATE TABLE plans(
  number INTEGER PRIMARY KEY, current INTEGER NOT NULL, fingerprint TEXT NOT NULL, wording TEXT NOT NULL,
  stamps TEXT NOT NULL, rows INTEGER NOT NULL, questions INTEGER NOT NULL, created_at REAL NOT NULL,
  low_water INTEGER NOT NULL DEFAULT 0, counts TEXT, layout TEXT NOT NULL,
  baseline INTEGER NOT NULL DEFAULT 0, filter TEXT NOT NULL)
"""

_RUNS = """
CREATE TABLE runs(
  id INTEGER PRIMARY KEY, plan INTEGER, started_at REAL NOT NULL, ended_at REAL, exit_code INTEGER, reason TEXT,
  host TEXT NOT NULL, pid INTEGER NOT NULL, version TEXT NOT NULL, job TEXT NOT NULL, flags TEXT,
  endpoint TEXT, answered_at REAL, requests INTEGER NOT NULL DEFAULT 0, cost INTEGER NOT NULL DEFAULT 0,
  possibly_billed INTEGER NOT NULL DEFAULT 0, cached INTEGER NOT NULL DEFAULT 0, counts TEXT, output TEXT,
  resume_at REAL)
"""

_FAILURES = """
CREATE TABLE failures(
  id INTEGER PRIMARY KEY, run_id INTEGER NOT NULL, question_id INTEGER NOT NULL, finished_at REAL NOT NULL,
  error_type TEXT NOT NULL, error_code INTEGER, http_status INTEGER, error_message TEXT, seconds REAL,
  cost INTEGER NOT NULL, possibly_billed INTEGER NOT NULL, provider TEXT)
"""

# run_id 0 holds what `--fresh` carried over.
_SPENDING = """
CREATE TABLE spending(
  run_id INTEGER NOT NULL, day TEXT NOT NULL, cost INTEGER NOT NULL, PRIMARY KEY(run_id, day)) WITHOUT ROWID
"""

# What a run may have spent by now at most, committed before it is spent: after a SIGKILL all of it counts.
_LEASES = "CREATE TABLE leases(run_id INTEGER PRIMARY KEY, day TEXT NOT NULL, amount INTEGER NOT NULL)"

# What providers' batches were submitted. `reserved` is what an open one may cost, or one that was given up. Its answers
# are read by `answer_schema` (NULL: text) and `price` of its own job file: the file may be edited while it is out.
_BATCHES = """
CREATE TABLE batches(
  number INTEGER PRIMARY KEY, run_id INTEGER NOT NULL, state TEXT NOT NULL, model TEXT NOT NULL, tag TEXT NOT NULL,
  answer_schema TEXT, price TEXT, provider_id TEXT, file_id TEXT, questions INTEGER NOT NULL, reserved INTEGER NOT NULL,
  cost INTEGER NOT NULL DEFAULT 0, submitted_at REAL NOT NULL, looks INTEGER NOT NULL DEFAULT 0,
  looked_at REAL, foreign_ids TEXT NOT NULL DEFAULT '[]', ended_at REAL, problem TEXT)
"""

# `batch` is NULL once the batch ended without an answer to the question; `tries` counts such batches.
_BATCHED = """
CREATE TABLE batched(question_id INTEGER PRIMARY KEY, batch INTEGER, tries INTEGER NOT NULL DEFAULT 0)
"""

BATCH_TRIES = 2
"""A question that this many batches left unanswered goes into no other batch."""

_OUT = "SELECT 1 FROM batched b WHERE b.question_id = r.question_id AND"
NOT_OUT = f"NOT EXISTS ({_OUT} b.batch IS NOT NULL)"
"""The condition for a row's question to be out in no batch."""
LIVE_AFTER_BATCH = f"EXISTS ({_OUT} b.batch IS NULL AND b.tries >= {BATCH_TRIES})"
"""The condition for a row's question to be asked live, since batches did not answer it."""
FOR_BATCH = f"NOT EXISTS ({_OUT} (b.batch IS NOT NULL OR b.tries >= {BATCH_TRIES}))"
"""The condition for a row's question to fit into another batch."""

KNOWN_COST = "CASE WHEN a.cost > 0 OR a.possibly_billed = 0 THEN CASE WHEN r.first THEN a.cost ELSE 0 END END"
"""A row's cost in picodollars; null where something was billed and nobody says how much."""

RESULTS = f"""
CREATE VIEW results AS SELECT
  r.position, lower(hex(r.key)) AS key, {STATUS} AS status, a.answer,
  coalesce(r.error_type, a.error_type) AS error_type, a.error_code,
  coalesce(r.error_message, a.error_message) AS error_message, a.http_status, a.attempts,
  a.prompt_tokens, a.completion_tokens, a.cached_tokens, a.cache_write_tokens,
  ({KNOWN_COST}) / 1e12 AS cost_usd,
  a.cached, a.model, a.provider, a.service_tier, a.finish_reason, a.generation_id, a.seconds AS latency_s,
  strftime('%Y-%m-%dT%H:%M:%SZ', a.finished_at, 'unixepoch') AS finished_at, a.raw AS answer_raw,
  a.reasoning, a.citations, a.run_id
FROM rows r LEFT JOIN answers a ON a.id = r.question_id
"""  # noqa: S608  (constants only)


def rows_table(name: str) -> str:
    """Return the statement that makes a table of a plan's rows.

    No question and no error: the row is left out by input.where. An error: it failed before sending. `first` is 1
    on the first row of its question.
    """
    return (
        f"CREATE TABLE {name}(position INTEGER PRIMARY KEY, question_id INTEGER, first INTEGER NOT NULL, "
        "key BLOB, error_type TEXT, error_message TEXT)"
    )


TABLES = (
    _QUESTIONS, _ANSWERS, _STATES, _FAILED, rows_table("rows"), _PLANS, _RUNS, _FAILURES, _SPENDING, _LEASES, _BATCHES,
    _BATCHED, RESULTS,
)  # fmt: skip
"""What a new checkpoint is made of, in order."""

INVARIANTS = {
    "a row's question is missing": (
        "SELECT count(*) FROM rows r LEFT JOIN questions q ON q.key = r.key "
        "WHERE r.question_id IS NOT NULL AND q.id IS NOT r.question_id"
    ),
    "a question of the plan has not exactly one first row": (
        "SELECT count(*) FROM (SELECT 1 FROM rows WHERE question_id IS NOT NULL "
        "GROUP BY question_id HAVING sum(first) <> 1)"
    ),
    "the plan does not have as many rows as it says": (
        "SELECT count(*) FROM plans WHERE current AND (rows <> (SELECT count(*) FROM rows) "
        "OR questions <> (SELECT coalesce(sum(first), 0) FROM rows) "
        "OR rows <> (SELECT coalesce(max(position) + 1, 0) FROM rows))"
    ),
    "an answer belongs to no question": "SELECT count(*) FROM answers WHERE id NOT IN (SELECT id FROM questions)",
    "an answer has an unknown status": (
        "SELECT count(*) FROM answers WHERE status NOT IN ('ok', 'failed', 'pending') "
        "OR status = 'ok' AND answer IS NULL OR status = 'failed' AND error_type IS NULL"
    ),
    "a run's cost is not what its days add up to": (
        "SELECT count(*) FROM runs r WHERE cost <> (SELECT coalesce(sum(cost), 0) FROM spending WHERE run_id = r.id)"
    ),
    "a question is out in a batch that is not open": (
        "SELECT count(*) FROM batched WHERE batch IS NOT NULL AND batch NOT IN "
        "(SELECT number FROM batches WHERE state IN ('submitting', 'out'))"
    ),
    "the answers cost more than was spent": (
        "SELECT (SELECT coalesce(sum(cost), 0) FROM answers) > (SELECT coalesce(sum(cost), 0) FROM spending)"
    ),
}
"""What must never be, each with a query that counts it."""
