"""Experiments: a table or curve as a file, what it takes made row by row, and the result in any form of print."""
