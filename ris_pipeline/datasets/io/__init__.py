"""Files of data sets: pictures, pickles, segmentations."""
