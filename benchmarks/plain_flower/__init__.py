"""The smallest app of plain Flower: its own FedAvg over one array, to be compared with."""
