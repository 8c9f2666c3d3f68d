"""The rounds of a study: plans out, answers in, admission, participation."""
