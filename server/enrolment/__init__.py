"""Before the first round: cohort, census of classes, overlap of images."""
