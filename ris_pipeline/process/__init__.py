"""What the machine does to a run: signals, worker processes, ranks, devices."""
