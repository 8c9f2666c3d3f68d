"""What a site keeps from round to round: the optimizer, control variates, the record of both."""
