"""What a site has spent of its patients' privacy: how much a study costs, what is left, and the ledger of it."""
