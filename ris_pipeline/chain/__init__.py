"""The chain: each stage as a function from its data set and what lies on the disk to the artifact it leaves."""
