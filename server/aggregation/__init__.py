"""One file per way of turning the updates of several sites into one delta.

Each rule is a pure function and knows no other; `server/aggregation/tally.py` picks the one that a
study names. All of them look at a tensor at a time, so that what they hold beyond the updates
themselves is one tensor of each site at most.
"""
