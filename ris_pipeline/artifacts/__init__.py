"""What a stage leaves on disk: named, found, written, checked."""
