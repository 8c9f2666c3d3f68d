"""Differentially private training: a round in which a single patient is lost in noise (DP-SGD).

Abadi et al. 2016, arXiv:1607.00133, with the patient in place of the example. In each step every patient is drawn by
chance alone. The gradients of a patient's images are added up and shrunk to a length of `max_grad_norm`. The sum over
patients gets normal noise of `noise` times that length. So a patient who is added or removed moves the sum by
`max_grad_norm` at most. Draws and noise come from a secure generator whose key stays in this process: the study's seed,
which the server knows, would give both away.
"""
