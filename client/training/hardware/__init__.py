"""How steps run on a device: precision, exact kernels, memory, batches prepared ahead."""
