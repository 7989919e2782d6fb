"""From a job file, .env and flags to one `Job`."""
