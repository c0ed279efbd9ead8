"""One reader per format of annotations."""
