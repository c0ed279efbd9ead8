"""The chain: each stage as a function that reads a data set and earlier artifacts, and leaves an artifact."""
