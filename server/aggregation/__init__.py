"""Aggregation rules, one file each: functions from the updates of several sites to one delta.

Each rule is a pure function and knows no other; `server/aggregation/tally.py` picks the one that a study names.
All of them read one tensor at a time. So beyond the updates they hold one tensor of each site at most.
"""
