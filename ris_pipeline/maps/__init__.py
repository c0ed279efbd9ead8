"""The concept "response map": how it is made of a grid, kept on disk and selected."""
