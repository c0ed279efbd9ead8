"""From response maps to pseudo-label masks: dense CRF, seeds, random walk, instances."""
