"""Reports and figures: what each stage made of each sentence, as one HTML page or as pictures for a paper."""
