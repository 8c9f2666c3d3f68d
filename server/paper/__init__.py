"""The paper's experiments, one command each: `consilium-server paper NAME --data DIR`."""
