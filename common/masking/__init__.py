"""Secure aggregation: sums of several sites' numbers, of which nothing but the sum can be read.

The protocol is that of Bonawitz et al. 2017 (ACM CCS, "Practical Secure Aggregation for Privacy-Preserving Machine
Learning", figure 4). What is here is the arithmetic that sites and server share; what a site sends and refuses is in
`client/masking`, what the server asks is in `server/rounds/masked_round.py`.
"""
