"""The embedded data set: pictures and sentences that are generated."""
