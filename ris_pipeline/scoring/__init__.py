"""Scores of response maps and masks against ground truth, with confidence intervals."""
