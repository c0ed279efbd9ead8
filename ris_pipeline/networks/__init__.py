"""The networks: CLIP, the other image encoders, Step-1, Step-2 and IRNet."""
