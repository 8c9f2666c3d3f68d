"""One hospital: a gateway without images and a trainer without a network."""
