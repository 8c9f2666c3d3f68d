"""The study operator: numpy in the loop, so the image needs neither torch nor CUDA."""
