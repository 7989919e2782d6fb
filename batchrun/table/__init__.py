"""Files to batches of rows; rows and answers to the output file."""
